"""Shards: what was written is read, and damage is found."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logtrain.data.shards import CONTEXT, DOCUMENT, ShardWriter, Split
from tests.support.synthetic import write_manifest


def make_documents(lengths: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens, a third of them context, and their records."""
    random = np.random.default_rng(seed)
    tokens_N = random.integers(0, 128_256, sum(lengths), dtype=np.uint32)
    tokens_N |= np.where(random.random(sum(lengths)) < 1 / 3, np.uint32(CONTEXT), np.uint32(0))
    records = np.zeros(len(lengths), DOCUMENT)
    records["length"], records["row"], records["domain"] = (
        lengths,
        np.arange(len(lengths)),
        random.integers(0, 5, len(lengths)),
    )
    ends = np.cumsum(lengths)
    records["targets"] = [(tokens_N[end - n + 1 : end] < CONTEXT).sum() for end, n in zip(ends, lengths, strict=True)]
    return tokens_N, records


def write(folder: Path, tokens_N: np.ndarray, records: np.ndarray, shard_tokens: int, cuts: list[int] = ()) -> Path:
    """Writes one split, handing the documents over in the pieces that `cuts` says."""
    folder.mkdir()
    writer = ShardWriter(folder, "train", shard_tokens)
    ends = np.concatenate([[0], np.cumsum(records["length"])])
    cuts = sorted({0, *(cut % (len(records) + 1) for cut in cuts), len(records)})
    for first, last in zip(cuts, cuts[1:] or cuts, strict=False):
        writer.add(tokens_N[ends[first] : ends[last]], records[first:last])
    write_manifest(folder, {"train": writer.close()})
    return folder


@pytest.fixture
def prepared(tmp_path) -> Path:
    return write(tmp_path / "data", *make_documents([3, 4, 5, 12, 1, 9, 2]), shard_tokens=10)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    shard_tokens=st.integers(1, 100),
    cuts=st.lists(st.integers(0, 20), max_size=4),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_written_is_read(tmp_path_factory, lengths, shard_tokens, cuts):
    tokens_N, records = make_documents(lengths)
    folder = write(tmp_path_factory.mktemp("shards") / "data", tokens_N, records, shard_tokens, cuts)
    split = Split.open(folder)
    assert split.lengths.tolist() == lengths
    assert split.targets.tolist() == records["targets"].tolist()
    assert split.targets.dtype == split.lengths.dtype == split.domains.dtype == np.int32
    assert split.domains.tolist() == records["domain"].tolist()
    start = 0
    for document, length in enumerate(lengths):
        whole = tokens_N[start : start + length]
        start += length
        for a in range(length + 1):
            b = (a * 7) % (length - a + 1) + a
            assert split.read(document, a, b).tolist() == whole[a:b].tolist()
            assert split.targets_between(document, a, b) == (whole[a:b] < CONTEXT).sum()
        assert split.targets_between(document, 1, length) == split.targets[document]

    whole = split.manifest["splits"]["train"]
    counts = {"documents": len(lengths), "tokens": sum(lengths), "targets": int(records["targets"].sum())}
    assert {name: whole[name] for name in counts} == counts
    assert {name: sum(shard[f"num_{name}"] for shard in whole["shards"]) for name in counts} == counts
    for shard in whole["shards"][:-1]:  # a shard ends with the document that fills it
        last = np.load(folder / shard["documents"])["length"][-1]
        assert shard["num_tokens"] - last < shard_tokens <= shard["num_tokens"]
    # Where shards end depends on the documents alone, not on how they were handed over.
    at_once = write(tmp_path_factory.mktemp("shards") / "data", tokens_N, records, shard_tokens)
    assert {f.name: f.read_bytes() for f in at_once.iterdir()} == {f.name: f.read_bytes() for f in folder.iterdir()}


def test_token_zero_can_be_context(tmp_path):
    tokens = np.array([0, 0, CONTEXT, CONTEXT | 1, 1], np.uint32)
    records = np.zeros(1, DOCUMENT)
    records["length"], records["targets"] = 5, 2
    split = Split.open(write(tmp_path / "data", tokens, records, 100))
    assert [split.targets_between(0, i, i + 1) for i in range(5)] == [1, 1, 0, 0, 1]


def test_anyone_can_open_them(prepared):
    tokens = np.load(prepared / "train-00000.tokens.npy", mmap_mode="r")
    documents = np.load(prepared / "train-00000.documents.npy")
    assert (tokens.dtype, tokens.shape, documents.dtype.names) == (np.uint32, (12,), DOCUMENT.names)
    assert documents["offset"].tolist() == [0, 3, 7]
    assert documents["row"].tolist() == [0, 1, 2]


def test_reads_are_views_of_the_file(prepared):
    tokens = Split.open(prepared).read(1, 0, 4)
    assert type(tokens) is np.ndarray
    assert tokens.base is not None
    assert not tokens.flags.writeable


# -- damage ------------------------------------------------------------------------------------------


def test_every_flipped_byte_is_found(prepared):
    for file in sorted(prepared.glob("train-00001.*.npy")):
        whole = file.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1
            file.write_bytes(damaged)
            try:
                Split.open(prepared)
            except ValueError as error:
                assert re.fullmatch(f"{file}: .*; prepare the folder again", str(error))
            else:  # a space of the header has become another kind of space
                assert position < whole.index(b"\n", 10) + 1
                assert np.array_equal(np.load(file), np.load(io.BytesIO(whole)))
        file.write_bytes(whole)
    assert Split.open(prepared).lengths.sum() == 36


@pytest.mark.parametrize("verify", [True, False])
def test_every_shortened_file_is_found(prepared, verify):
    for file in sorted(prepared.glob("train-00000.*.npy")):
        whole = file.read_bytes()
        for length in [*range(0, 128, 9), *range(128, len(whole))]:
            file.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=f"{file}: cut short or damaged"):
                Split.open(prepared, verify=verify)
        file.unlink()
        with pytest.raises(ValueError, match=f"{file}: missing, though the manifest names it"):
            Split.open(prepared, verify=verify)
        file.write_bytes(whole)


def test_another_array_in_its_place_is_found(prepared):
    file = prepared / "train-00000.tokens.npy"
    for array in (np.zeros(12, np.int32), np.zeros(11, np.uint32), np.zeros((12, 1), np.uint32)):
        np.save(file, array)
        with pytest.raises(ValueError, match=r"the manifest says u4 \[12\]"):
            Split.open(prepared, verify=False)


def test_verify_false_trusts_the_data(prepared):
    file = prepared / "train-00000.tokens.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x42")
    Split.open(prepared, verify=False)
    with pytest.raises(ValueError, match="checksum"):
        Split.open(prepared)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="none: no such prepared folder"):
        Split.open(tmp_path / "none")
