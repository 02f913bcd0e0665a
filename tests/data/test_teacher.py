"""A teacher's distribution beside the tokens of a shard: what was written is read and laid out beside the labels, and
neither damage nor anything that is no distribution passes.
"""

import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from logtrain.core.batch import IGNORE
from logtrain.core.untrusted import read_sealed
from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader
from logtrain.data.shards import CONTEXT, DOCUMENT, ShardWriter, Split, teacher_dtype
from tests.support.synthetic import change_manifest, random_teacher, write_manifest

K, V, SEQ_LEN = 5, 400, 32
LENGTHS = [3, 14, 1, 32, 33, 70, 9, 20, 5, 31]
TEACHER = "train-00001.teacher.npy"


def write(folder: Path, top_k: int = K) -> Path:
    """Documents whose ids count through all of them, a fifth of them context, in several shards."""
    folder.mkdir()
    writer, first, random = ShardWriter(folder, "train", 60, top_k), 0, np.random.default_rng(3)
    for row, length in enumerate(LENGTHS):
        tokens = np.arange(first, first + length, dtype=np.uint32)
        tokens[random.random(length) < 0.2] |= np.uint32(CONTEXT)
        record = np.zeros(1, DOCUMENT)
        record["length"], record["row"], record["targets"] = length, row, np.count_nonzero(tokens[1:] < CONTEXT)
        writer.add(tokens, record, random_teacher(tokens, top_k, V, first) if top_k else None)
        first += length
    tokenizer = {"path": "", "sha256": "", "vocab_size": V, "bos_id": 1, "document_end": "", "document_end_id": 2}
    settings = {"seq_len": SEQ_LEN, "seed": 1, **({"teacher_top_k": top_k} if top_k else {})}
    write_manifest(folder, {"train": writer.close()}, tokenizer, settings)
    return folder


@pytest.fixture
def prepared(tmp_path) -> Path:
    return write(tmp_path / "data")


def test_written_is_read(prepared):
    split, first = Split.open(prepared), 0
    assert split.teacher_top_k == K
    for document, length in enumerate(LENGTHS):
        wanted = random_teacher(split.read(document, 0, length), K, V, first)
        assert np.array_equal(split.teacher(document, 0, length), wanted)
        assert np.array_equal(split.teacher(document, length // 3, length), wanted[length // 3 :])
        first += length
    with pytest.raises(ValueError, match="tokens 0 to 4 of document 0"):
        split.teacher(0, 0, 4)
    loose = np.load(prepared / TEACHER)
    assert loose.dtype == teacher_dtype(K) and loose["ids"].shape == (len(loose), K)


@pytest.mark.parametrize("attention", ["document", "row"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_label_has_its_teacher_and_nothing_else_has(prepared, attention, ranks):
    """Also those of documents that are cut, in every epoch, and whatever the ranks."""
    split = Split.open(prepared)
    of_token = np.concatenate([split.teacher(document, 0, length) for document, length in enumerate(LENGTHS)])
    config = LoaderConfig(seq_len=SEQ_LEN, rows_per_step=2, attention=attention)
    for epoch in (0, 1):
        found = []
        for rank in range(ranks):
            loader = Loader(split, config, seed=7, pad_id=0, rank=rank, world_size=ranks, with_teacher=True)
            for step in range(epoch * loader.steps_per_epoch, (epoch + 1) * loader.steps_per_epoch):
                for batch in loader.at(step).batches:
                    is_label = batch.labels_T != IGNORE
                    assert batch.teacher_log_TK.dtype == torch.float16
                    if batch.teacher_TK.shape[1]:
                        labels = batch.labels_T[is_label]
                        assert np.array_equal(batch.teacher_TK[is_label].numpy(), of_token["ids"][labels])
                        logs = batch.teacher_log_TK.numpy()
                        assert np.array_equal(logs[is_label], of_token["log_probabilities"][labels])
                        assert np.isneginf(logs[~is_label]).all()
                        found += labels.tolist()
        assert len(found) == split.targets.sum() == len(set(found))


def test_without_it_a_batch_is_as_it_was(prepared, tmp_path):
    """And a manifest as older versions wrote it."""
    plain = write(tmp_path / "plain", top_k=0)
    assert not list(plain.glob("*teacher*"))
    manifest = read_sealed(plain / "manifest.json")
    assert "teacher_top_k" not in manifest["settings"] and "teacher" not in manifest["splits"]["train"]["shards"][0]
    config, batches = LoaderConfig(seq_len=SEQ_LEN, rows_per_step=1), []
    for folder, with_teacher in ((prepared, False), (plain, True), (prepared, True)):
        loader = Loader(Split.open(folder), config, seed=7, pad_id=0, with_teacher=with_teacher)
        batches.append(loader.at(1).batches[0])
    assert all(batch.teacher_TK is None and batch.teacher_log_TK is None for batch in batches[:2])
    for batch in batches:
        assert all(torch.equal(*pair) for pair in zip(batch[:4], batches[0][:4], strict=True))
    moved = batches[2].map(lambda x: x + 1)  # as `to` and `pin` do
    assert torch.equal(moved.teacher_TK, batches[2].teacher_TK + 1) and moved.max_seqlen == batches[2].max_seqlen
    assert moved.seeds_T is not None and moved.pairs_P3 is None


# ---- damage


def test_a_flipped_byte_is_found_anywhere(prepared):
    file = prepared / TEACHER
    whole = file.read_bytes()
    for position in range(whole.index(b"\n", 10) + 1, len(whole), 17):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=f"{file}: damaged"):
            Split.open(prepared)
    for content in (whole[:-1], whole[:100], b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"{file}: cut short or damaged"):
            Split.open(prepared)
    file.unlink()
    with pytest.raises(ValueError, match=f"{file}: missing, though the manifest names it"):
        Split.open(prepared)


def put(prepared: Path, records: np.ndarray) -> None:
    """Records in the place of those of the second shard, with their checksum."""
    np.save(prepared / TEACHER, records)
    splits = read_sealed(prepared / "manifest.json")["splits"]
    splits["train"]["shards"][1]["teacher_crc32"] = zlib.crc32(records.data)
    change_manifest(prepared, splits=splits)


def target_of(split: Split) -> int:
    """A token of the second shard that is predicted."""
    return int(np.flatnonzero(np.load(split.folder / TEACHER)["log_probabilities"][:, 0] > -np.inf)[2])


CHANGES = {
    "not a number": ("log_probabilities", 1, np.nan),
    "above 0": ("log_probabilities", 0, 0.5),
    "none": ("log_probabilities", slice(None), -np.inf),
    "more than 1 together": ("log_probabilities", slice(0, 2), -0.1),
    "not the likeliest first": ("log_probabilities", 0, -30.0),
    "outside the vocabulary": ("ids", 2, V),
    "twice": ("ids", slice(0, 2), 7),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_distribution_is_refused(prepared, change):
    """Though its checksum is right."""
    (name, where, value), split = CHANGES[change], Split.open(prepared)
    records = np.load(prepared / TEACHER)
    records[name][target_of(split), where] = value
    put(prepared, records)
    with pytest.raises(ValueError, match=f"{re.escape(str(prepared / TEACHER))}: its records are no distributions"):
        Split.open(prepared)
    Split.open(prepared, verify=False)


def test_a_token_that_is_not_predicted_has_none(prepared):
    records = np.load(prepared / TEACHER)
    records["log_probabilities"][0] = -1.0
    put(prepared, records)
    with pytest.raises(ValueError, match="its records are no distributions of these tokens"):
        Split.open(prepared)


def test_a_manifest_that_does_not_fit(prepared, tmp_path):
    whole = read_sealed(prepared / "manifest.json")
    settings, (first, *others) = whole["settings"], whole["splits"]["train"]["shards"]
    without = {key: value for key, value in first.items() if not key.startswith("teacher")}
    other_name = {**first, "teacher": "train-00001.teacher.npy"}

    def shards(of_first: dict) -> dict:
        return {"train": {**whole["splits"]["train"], "shards": [of_first, *others]}}

    cases = [
        ({"settings": {**settings, "teacher_top_k": 1}}, "teacher_top_k is no whole number from 2 to 256"),
        ({"settings": {**settings, "teacher_top_k": "5"}}, "teacher_top_k is no whole number"),
        ({"settings": {**settings, "teacher_top_k": 6}}, r"the manifest says V36 \[\d+\]"),
        ({"settings": {k: v for k, v in settings.items() if k != "teacher_top_k"}}, "do not agree"),
        ({"splits": shards(without)}, "shard 0 and settings.teacher_top_k do not agree on whether there is a teacher"),
        ({"splits": shards(other_name)}, "is not the name of shard 0"),
    ]
    for number, (changes, words) in enumerate(cases):
        folder = shutil.copytree(prepared, tmp_path / str(number))
        change_manifest(folder, **changes)
        with pytest.raises(ValueError, match=words) as error:
            Split.open(folder)
        assert len(str(error.value).splitlines()) == 1
