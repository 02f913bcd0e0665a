"""`python -m logtrain.replay`: prepared data that a run takes as a source, the same on any number of ranks and after a
kill, never evaluated on.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from logtrain import prepare, replay
from logtrain.data.prepared import read_manifest
from logtrain.data.shards import CONTEXT, Split
from logtrain.generation import replay_folder, replay_rounds
from logtrain.sharing.contents import lineage_of
from tests.support.evaluation import write_chat_model
from tests.support.llama import load_transformers
from tests.support.ranks import Ranks
from tests.support.training import records, train

SEQ_LEN, TOP_K = 64, 6


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("replay") / "model", 0.3)


def flags(model: Path, output: Path, *more: str) -> list[str]:
    fixed = ["--tokens", "200", "--max_tokens", "24", "--seq_len", str(SEQ_LEN), "--max_sequences", "8"]
    fixed += ["--teacher_top_k", str(TOP_K)]
    return ["--model", str(model), "--output", str(output), *fixed, *more]


def replayed(arguments: list[str]) -> int:
    try:
        return replay.main(arguments)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def data(model) -> Path:
    assert replayed(flags(model, model.parent / "data")) == 0
    return model.parent / "data"


def test_two_ranks_write_the_same(model, data, tmp_path, ranks: Ranks):
    assert ranks.run(2, replayed, flags(model, tmp_path / "data")) == [0, 0]
    assert content(tmp_path / "data") == content(data)
    assert not (tmp_path / "data.samples").exists()


def test_a_killed_one_goes_on_without_a_lost_or_doubled_sample(model, data, tmp_path, monkeypatch, capsys):
    class Killed(BaseException):
        pass

    def record(*arguments):
        for count, sample in enumerate(replay_rounds_record(*arguments)):
            yield sample
            if count == 9:
                raise Killed

    replay_rounds_record = replay_rounds.record_samples
    output, there = tmp_path / "data", tmp_path / "data.samples" / "00000.jsonl"
    monkeypatch.setattr(replay_rounds, "record_samples", record)
    with pytest.raises(Killed):
        replayed(flags(model, output))
    assert not output.exists()
    lines = there.read_bytes().splitlines(keepends=True)
    there.write_bytes(b"".join(lines[:-1]) + lines[-1][:-20])  # the last one torn
    drawn = []
    writes = replay_rounds.SampleWriter.write
    monkeypatch.setattr(replay_rounds, "record_samples", replay_rounds_record)
    monkeypatch.setattr(
        replay_rounds.SampleWriter,
        "write",
        lambda self, numbers: writes(self, drawn.append(list(numbers)) or drawn[-1]),
    )
    assert replayed(flags(model, output)) == 0
    before = {json.loads(line)["number"] for line in lines[:-1]}
    again = [number for numbers in drawn for number in numbers]
    assert not before & set(again) and len(again) == len(set(again))
    assert sorted({*before, *again}) == list(range(len(before) + len(again)))
    assert content(output) == content(data)
    assert replayed(flags(model, output)) == 0
    assert "already written by this model with these settings" in capsys.readouterr().out


def test_the_manifest_tells_where_it_is_from(model, data):
    manifest = read_manifest(data)
    split = Split.open(data)
    facts = manifest["replay"]
    assert facts["samples"] == facts["kept"] + sum(facts["dropped"].values()) and facts["kept"] == split.num_documents
    assert 200 <= manifest["splits"]["train"]["tokens"] < 200 + SEQ_LEN
    assert manifest["settings"]["seed"] == 1309 and manifest["settings"]["temperature"] == 1.0
    assert manifest["sources"][0]["path"] == str(model) and lineage_of(data)["parents"][0]["role"] == "model"
    numbers = [split.origin(document)[1] for document in range(split.num_documents)]
    assert numbers == sorted(set(numbers)) and numbers[-1] == facts["samples"] - 1
    for document in range(split.num_documents):
        tokens = split.read(document, 0, int(split.lengths[document]))
        assert np.count_nonzero(tokens[1:] < CONTEXT) == split.targets[document] > 0


def test_the_stored_distribution_is_the_models_of_that_text(model, data):
    """By transformers, of each sample alone; in float16, and nothing beside what is context."""
    split, theirs = Split.open(data), load_transformers(model)
    vocab_size = split.manifest["tokenizer"]["vocab_size"]
    assert vocab_size < theirs.config.vocab_size
    for document in range(split.num_documents):
        span = (document, 0, int(split.lengths[document]))
        stored, records = split.read(*span), split.teacher(*span)
        ids = torch.from_numpy((stored & (CONTEXT - 1)).astype(np.int64))
        with torch.no_grad():
            log_NV = theirs(ids[None]).logits[0, :-1].log_softmax(-1)
        top = log_NV[:, :vocab_size].topk(TOP_K)  # the model has outputs that no token has
        is_target = stored[1:] < CONTEXT
        assert is_target.sum() == split.targets[document] and not is_target.all()
        assert np.array_equal(records["ids"][1:][is_target], top.indices.numpy()[is_target])
        found = records["log_probabilities"].astype(np.float32)
        np.testing.assert_allclose(found[1:][is_target], top.values.numpy()[is_target], rtol=2**-11, atol=1e-5)
        assert np.isneginf(found[1:][~is_target]).all() and np.isneginf(found[0]).all()


def test_a_teacher_changes_no_sample(model, data, tmp_path):
    assert replayed(flags(model, tmp_path / "data", "--teacher_top_k", "0")) == 0
    plain = content(tmp_path / "data")
    assert set(content(data)) - set(plain) == {"train-00000.teacher.npy"}
    arrays = [name for name in plain if name.endswith(".npy")]
    assert len(arrays) == 2 and all(plain[name] == content(data)[name] for name in arrays)
    assert "teacher_top_k" not in read_manifest(tmp_path / "data")["settings"]


def test_it_is_a_source_of_a_mixture_and_no_evidence(model, data, tmp_path):
    logs, texts = tmp_path / "logs", tmp_path / "texts.jsonl"
    words = np.random.default_rng(0).choice(["error", "disk", "why", "failed", "user"], (90, 12))
    texts.write_text("".join(json.dumps({"text": " ".join(row)}) + "\n" for row in words))
    rows = ["--input", str(texts), "--tokenizer", str(model), "--seq_len", str(SEQ_LEN), "--workers", "1"]
    prepare.main([*rows, "--output", str(logs), "--valid_fraction", "0.1"])
    mixed = ["--name", "run", "--model", str(model), "--runs", str(tmp_path), "--data", f"logs={logs}"]
    mixed += [f"replay={data}", "--mix.logs", "0.75", "--mix.replay", "0.25", "--loader.seq_len", str(SEQ_LEN)]
    mixed += ["--loader.rows_per_step", "4", "--trainer.max_steps", "4", "--trainer.log_every", "4"]
    assert train(mixed) == 0
    (record,) = records(tmp_path / "run")
    assert record["loss.replay"] > 0 and record["targets.replay"] < record["tokens.replay"]
    assert {record["set"] for record in records(tmp_path / "run", "valid_loss")} == {"logs"}
    with pytest.raises(ValueError, match="a model wrote it"):
        train([*mixed, "--name", "other", "--valid", f"own={data}"])


@pytest.mark.slow
def test_what_is_wrong_is_one_line_and_leaves_nothing(model, data, tmp_path, monkeypatch, capsys):
    other = shutil.copytree(model, tmp_path / "other")
    write_chat_model(other, 0.2)
    cases = [
        (flags(model, tmp_path / "a", "--sampling.temperature", "0"), "give a temperature above 0"),
        (flags(model, tmp_path / "a", "--sampling.top_k", "1"), "top_k = 1: every sample would be the same"),
        (flags(model, tmp_path / "a", "--sampling.min_p", "1"), "min_p = 1: every sample would be the same"),
        (flags(model, tmp_path / "a", "--seq_len", "513"), "seq_len = 513: the model knows 512 positions"),
        (flags(model, model), "model: not empty; empty it, or choose another name"),
        (flags(model, tmp_path / "a", "--tokens", "5X"), "tokens = '5X': expected a number of at least 1"),
        (flags(model, tmp_path / "a", "--min_tokens", "50"), "min_tokens = 50 is more than max_tokens = 24"),
        (flags(model, tmp_path / "a", "--max_repeated", "0"), "max_repeated = 0.0 is outside"),
        (flags(model, data, "--sampling.seed", "4"), r"was prepared with other seed \(1309 there, 4 now\)"),
        (flags(other, data), "was prepared with other input"),
        (flags(model, tmp_path / "a", "--date", "2025-01-01"), "never asks for the date"),
        (flags(model, tmp_path / "a", "--memory", "-1"), "memory = -1.0"),
        (flags(model, tmp_path / "a", "--teacher_top_k", "1"), "teacher_top_k = 1 must be 0, or from 2 to 256"),
        (flags(model, tmp_path / "a", "--teacher_top_k", "257"), "teacher_top_k = 257 must be 0, or from 2 to 256"),
        (flags(model, data, "--teacher_top_k", "7"), r"with other teacher_top_k \(6 there, 7 now\)"),
        (flags(model, data, "--teacher_top_k", "0"), r"with other teacher_top_k \(6 there, None now\)"),
        (flags(model, data, "--kind", "documents"), r"with other kind \(chats there, documents now\)"),
        (flags(model, tmp_path / "a", "--template", str(tmp_path / "none.jinja")), "no such file"),
    ]
    for arguments, words in cases:
        with pytest.raises(ValueError, match=words) as error:
            replayed(arguments)
        assert len(str(error.value).splitlines()) == 1
        assert not (tmp_path / "a").exists() and not (tmp_path / "a.samples").exists()
        assert not model.with_name("model.samples").exists()
    monkeypatch.setattr(replay_folder, "write_replay", lambda *_: (_ for _ in ()).throw(OSError("full")))
    capsys.readouterr()
    with pytest.raises(OSError, match="full"):
        replayed(flags(model, tmp_path / "a"))
    kept = f"{tmp_path / 'a.samples'}: keeps the samples so far, with which the same command goes on; to begin anew, "
    assert capsys.readouterr().err.endswith(f"{kept}delete it\n")
    for change, words in (
        (flags(model, tmp_path / "a", "--min_tokens", "9"), "was started with min_tokens = 8, now it is 9"),
        (flags(other, tmp_path / "a"), "written by another model than the one that is there now"),
    ):
        with pytest.raises(ValueError, match=words):
            replayed(change)
        assert f"{kept}delete it\n" in capsys.readouterr().err
    with pytest.raises(OSError, match="full"):
        replayed(flags(model, tmp_path / "b", "--sampling.seed", "5"))
    file = tmp_path / "a.samples" / "00000.jsonl"
    file.write_bytes((tmp_path / "b.samples" / "00000.jsonl").read_bytes())
    with pytest.raises(ValueError, match=rf"{file} line 1: another file lies in its place: samples of run "):
        replayed(flags(model, tmp_path / "a"))
    assert not (tmp_path / "a").exists()
