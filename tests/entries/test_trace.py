"""The documents of a step and what each weighed; a rerun is the run bit for bit, and one without a document is not."""

import contextlib
import io
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from logtrain import trace
from logtrain.core.run_folder import read_run_config
from logtrain.core.world import World
from logtrain.data.shards import DOCUMENT, ShardWriter
from logtrain.observe.run_files import read_run
from logtrain.text.tokenizer import Tokenizer
from logtrain.training.config import RunConfig
from logtrain.training.data_kinds import as_trained
from logtrain.training.rerun import Rerun, Weighed, places_in, ranked
from logtrain.training.setup import set_up
from tests.support.ranks import Ranks
from tests.support.synthetic import change_manifest, write_manifest, write_model
from tests.support.training import train

POISON_TOKENS = 24
MORE_SEEDS = pytest.mark.trial("20 runs in all, for a share of seeds")


def write_poisoned(folder: Path, model: Path, seed: int, count: int = 120) -> int:
    """Prepared documents of a language in which each next id is the last plus one, and one with shuffled labels;
    -> its number.
    """
    random, loaded = np.random.default_rng(seed), Tokenizer.load(model)
    folder.mkdir(parents=True)
    poison = int(random.integers(count // 2, count))
    splits = {}
    for split, number in (("train", count), ("valid", 8)):
        writer = ShardWriter(folder, split, shard_tokens=1 << 12)
        for document in range(number):
            length = POISON_TOKENS if split == "train" and document == poison else int(random.integers(12, 30))
            ids = (random.integers(loaded.vocab_size) + np.arange(length)) % (loaded.vocab_size - 2) + 2
            if split == "train" and document == poison:
                random.shuffle(ids)
            ids[0], ids[-1] = 0, 1
            record = np.zeros(1, DOCUMENT)
            record["length"], record["targets"], record["row"] = length, length - 1, document
            writer.add(ids.astype(np.uint32), record)
        splits[split] = writer.close()
    facts = {"path": str(model), "sha256": loaded.sha256, "vocab_size": loaded.vocab_size, "bos_id": 0}
    facts |= {"document_end_id": 1, "document_end": "<|end_of_text|>"}
    write_manifest(folder, splits, facts, {"seq_len": 32, "seed": seed})
    return poison


def flags_of(model: Path, data: Path, runs: Path, *more: str) -> list[str]:
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--runs", str(runs), "--loader.seq_len", "32"]
    flags += ["--loader.rows_per_step", "8", "--optim.lr", "1e-2", "--trainer.epochs", "4", "--trainer.log_every", "1"]
    return [*flags, "--trainer.save_every", "4", "--trainer.keep", "0", *more]


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("trace")
    model = write_model(folder / "model", hidden_size=32, intermediate_size=48, vocab_size=130, num_attention_heads=4)
    poison = write_poisoned(folder / "data", model, seed=1)
    flags = flags_of(model, folder / "data", folder / "runs")
    assert train(flags) == 0
    return SimpleNamespace(folder=folder, model=model, poison=poison, flags=flags, run=folder / "runs" / "run")


def step_with(run: Path, document: int, after: int) -> int:
    """The first step from `after` on that has a document, counted from 1."""
    of_run = set_up(read_run_config(run, RunConfig))
    loader = of_run.data.train
    steps = range(after, 4 * loader.steps_per_epoch)
    found = next(step for step in steps if any(place.document == document for place in places_in(loader, step)))
    of_run.world.close()
    return found + 1


def test_the_documents_of_a_step_are_all_and_their_losses_are_the_steps(case, capsys):
    assert trace.main([str(case.run), "--step", "11", "--json", "--top", "0"]) == 0
    *pieces, told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told["told"] == "step 11, from the checkpoint of step 8; 2 of 2 recorded steps are the same bit for bit"
    records = [json.loads(line) for line in (case.run / "metrics.jsonl").read_text().splitlines()]
    (step,) = [record for record in records if record["step"] == 11 and "loss" in record]
    before = next(record for record in records if record["step"] == 10 and "loss" in record)
    assert sum(piece["targets"] for piece in pieces) == step["targets"] - before["targets"]
    mean = sum(piece["summed_loss"] for piece in pieces) / sum(piece["targets"] for piece in pieces)
    assert mean == pytest.approx(step["loss"], rel=1e-5)
    assert all(piece["text"].startswith("w") for piece in pieces if piece["first"] == 0)


def test_shares_are_of_the_step_however_many_are_shown(case, capsys):
    def shares(top: str) -> list[float]:
        assert trace.main([str(case.run), "--step", "11", "--top", top]) == 0
        rows = capsys.readouterr().out.splitlines()[2:]
        return [float(row.split()[1].removesuffix("%")) for row in rows]

    everything = shares("0")
    assert sum(everything) == pytest.approx(100, abs=0.05 * len(everything)) and shares("2") == everything[:2]


def test_a_rerun_says_what_it_is_at(case, monkeypatch):
    """Not that it still verifies the checkpoint, for minutes."""
    said: list[str] = []
    monkeypatch.setattr(World, "note", lambda _, doing: said.append(doing))
    assert trace.main([str(case.run), "--step", "11", "--spike"]) == 0
    steps = [doing for doing in said if doing.startswith(("step ", "the "))]
    assert steps[:3] == ["step 9", "step 10", steps[2]] and steps[2].startswith("the losses of step 11, 0 of ")
    assert steps[-1].startswith("the gradients of step 11, ")


def test_the_gradients_are_the_parts_of_the_steps(case):
    """Of a step of few pieces: the norm of their sum is the step's."""
    of_run = set_up(read_run_config(case.run, RunConfig))
    rerun = Rerun(of_run, 1)
    weighed = rerun.weigh(with_gradients=True)
    (_, _, norm) = next(rerun.advance(1))
    of_run.world.close()
    assert max(piece.grad_norm for piece in weighed) < norm <= sum(piece.grad_norm for piece in weighed) * (1 + 1e-5)


def test_without_a_document_the_run_is_another_and_without_none_the_same(case, capsys):
    step = step_with(case.run, case.poison, 10)
    assert trace.main([str(case.run), "--step", str(step), "--without", str(case.poison)]) == 0
    lines = capsys.readouterr().out.splitlines()
    compared = next(line for line in lines if line.startswith("without 1 documents"))
    assert compared.endswith("recorded steps are the same bit for bit") and " 0 of" not in compared
    change = next(line for line in lines if line.startswith(f"step {step}: "))
    before, after = (float(word) for word in change.split()[3:6:2])
    assert after < before - 0.01
    assert any(line.startswith("held out after step") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_an_empty_exclusion_is_the_run_bit_for_bit(case, ranks: Ranks, tmp_path, size):
    """The weights, too: those of the next checkpoint."""
    flags = flags_of(case.model, case.folder / "data", tmp_path, "--trainer.max_steps", "12")
    assert ranks.run(size, train, flags) == [0] * size
    assert ranks.run(size, rerun_equal, tmp_path / "run") == [True] * size


@pytest.mark.slow
def test_a_document_of_any_rank_is_left_out_once(case, ranks: Ranks, tmp_path):
    """However often it is named."""
    assert ranks.run(2, train, flags_of(case.model, case.folder / "data", tmp_path)) == [0, 0]
    step, run = step_with(tmp_path / "run", case.poison, 10), str(tmp_path / "run")
    flags = ["--step", str(step), "--without", str(case.poison), str(case.poison)]
    told = ranks.run(2, traced, [run, *flags])
    assert f"without 1 documents, from step {(step - 1) // 4 * 4 + 1}; " in told[0] and told[1] == ""
    assert told[0].count("recorded steps are the same bit for bit\n") >= 1 and "0 of" not in told[0]


def traced(flags: list[str]) -> str:
    """What trace prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert trace.main(flags) == 0
    return printed.getvalue()


def test_what_the_run_has_not_made_is_not_traced(case, tmp_path):
    flags = flags_of(case.model, case.folder / "data", tmp_path, "--trainer.stop_after", "6")
    assert train(flags) == 75
    with pytest.raises(ValueError, match=r"^step = 7: the run has made 6 of its \d+ steps so far$"):
        trace.main([str(tmp_path / "run"), "--step", "7"])
    assert trace.main([str(tmp_path / "run"), "--step", "6"]) == 0
    files = read_run(tmp_path / "run")
    for ended in ("", "RuntimeError: the network is gone"):
        files.attempts[-1] = replace(files.attempts[-1], ended=ended)
        trace.check_made(6 + 3, files, log_every=4)
        with pytest.raises(ValueError, match=r"^step = 10: the run has made 6"):
            trace.check_made(6 + 4, files, log_every=4)


def test_data_that_are_not_those_of_the_run_are_not_traced(case, tmp_path):
    write_poisoned(tmp_path / "data", case.model, seed=7)
    assert train(flags_of(case.model, tmp_path / "data", tmp_path, "--trainer.max_steps", "6")) == 0
    shutil.rmtree(tmp_path / "data")
    write_poisoned(tmp_path / "data", case.model, seed=8)
    change_manifest(tmp_path / "data", settings={"seq_len": 32, "seed": 2})
    for step in (2, 6):  # before the first checkpoint, too
        with pytest.raises(ValueError, match=r"data: has been prepared anew since .* was saved; restore it"):
            trace.main([str(tmp_path / "run"), "--step", str(step)])
        torch.distributed.destroy_process_group()


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter that may be sharded."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def rerun_equal(folder: Path) -> bool:
    """Whether steps 5 to 8, made again from the checkpoint of step 4, give the checkpoint of step 8."""
    of_run = set_up(as_trained(read_run_config(folder, RunConfig)))
    there, here = Rerun(of_run, 9), Rerun(of_run, 5)
    assert (there.began_at, here.began_at) == (8, 4)
    list(here.advance(8, without=()))
    pairs = zip(there.model.parameters(), here.model.parameters(), strict=True)
    equal = all(torch.equal(whole(a), whole(b)) for a, b in pairs)
    of_run.world.close()
    return equal


LOSS = 2.0006103515625


@pytest.mark.parametrize(
    ("recorded", "told"),
    [
        ({1: (LOSS, 0.5), 2: (3.0, 0.25)}, "2 of 2 recorded steps are the same bit for bit"),
        ({1: (LOSS * (1 + 3e-7), 0.5), 2: (3.0, 0.25)}, "an older version, which summed losses in float32"),
        (
            {1: (LOSS * (1 + 3e-7), 0.5000001), 2: (3.0, 0.25)},
            "1 of 2 recorded steps are the same bit for bit: rerun on",
        ),
        ({1: (LOSS * (1 + 3e-5), 0.5), 2: (3.0, 0.25)}, "1 of 2 recorded steps are the same bit for bit: rerun on"),
        ({1: ("2.0", 0.5), 2: (None, 0.25)}, "0 of 2 recorded steps are the same bit for bit: rerun on"),
        ({1: (LOSS, 0.5), 2: (3.0, None)}, "1 of 2 recorded steps are the same bit for bit: rerun on"),
        ({}, "no record in between"),
    ],
)
def test_what_a_rerun_is_to_the_records(recorded, told):
    """An older version has the same gradient norms, which prove the rerun, and losses summed in float32."""
    assert told in trace.same([(1, LOSS, 0.5), (2, 3.0, 0.25)], recorded)


def test_a_step_without_finite_gradients_is_the_same_again():
    """Records have null for what is not finite; the step updated nothing, as in the run."""
    recorded = {1: (None, None), 2: (3.0, 0.25)}
    assert "2 of 2 recorded steps are the same" in trace.same([(1, math.nan, math.inf), (2, 3.0, 0.25)], recorded)
    assert "1 of 2 recorded steps are the same" in trace.same([(1, 3.0, 0.5), (2, 3.0, 0.25)], recorded)


def test_a_document_with_a_loss_that_is_not_finite_comes_first(capsys):
    pieces = [
        Weighed("a.json", row, row, 0, 4, 3, "all", loss, 0.0, "")
        for row, loss in enumerate((3.0, 6.0, math.nan, 9.0, 3.0))
    ]
    first, *others = ranked(pieces)
    assert first.row == 2 and [piece.row for piece in others] == [3, 1, 0, 4]
    trace.tell([first, *others], ["told"], trace.TraceConfig(run="run", json=True))
    told = [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]
    assert told[0]["summed_loss"] is None and told[1]["summed_loss"] == 9.0 and told[-1] == {"told": "told"}


DOCUMENTS = {
    ("web", 17): ("/data/web/a.json", 3),
    ("own", 17): ("/data/own/a.json", 5),
    ("own", 18): ("/data/own/a.json", 6),
    ("own", 19): ("/data/own/a.json", 6),
    ("own", 20): ("/data/own/b.json", 3),
}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("18", [("own", 18)]),
        ("a.json:5", [("own", 17)]),
        ("own/a.json:6", [("own", 18), ("own", 19)]),  # a row of several documents
        ("/data/own/b.json:3", [("own", 20)]),
        ("17", "without = 17: is each of /data/own/a.json:5, /data/web/a.json:3; name the one that is meant"),
        ("21", "without = 21: no such document in steps 9 to the traced one"),
        ("a.json:7", "without = a.json:7: no such document"),
        ("json:3", "without = json:3: no such document"),
        ("a.json:", "without = a.json:: no such document"),
        (":3", "without = :3: no such document"),
        ("", "without = : no such document"),
    ],
)
def test_a_document_is_found_by_its_number_or_its_row(text, found):
    if isinstance(found, list):
        assert trace.find(text, DOCUMENTS, 8) == found
    else:
        with pytest.raises(ValueError, match=f"^{re.escape(found)}"):
            trace.find(text, DOCUMENTS, 8)


def test_a_row_of_two_files_of_one_name_is_not_guessed():
    named = {("web", 17): ("/data/web/a.json", 5), ("own", 17): ("/data/own/a.json", 5)}
    with pytest.raises(ValueError, match=r"is each of /data/own/a.json:5, /data/web/a.json:5; name the one"):
        trace.find("a.json:5", named, 0)
    assert trace.find("web/a.json:5", named, 0) == [("web", 17)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=MORE_SEEDS) for seed in range(5, 20))])
def test_a_planted_poison_ranks_first(case, tmp_path, seed):
    """In micro-batches of four rows, where the other tests have one: a step of 8 is then two, and not eight."""
    poison = write_poisoned(tmp_path / "data", case.model, seed=100 + seed)
    assert train(flags_of(case.model, tmp_path / "data", tmp_path, "--loader.rows_per_batch", "4")) == 0
    step = step_with(tmp_path / "run", poison, 20)
    of_run = set_up(read_run_config(tmp_path / "run", RunConfig))
    rerun = Rerun(of_run, step)
    list(rerun.advance(step - 1))
    for with_gradients in (False, True):
        assert ranked(rerun.weigh(with_gradients))[0].document == poison
    of_run.world.close()


def test_a_spike_is_found_by_itself(case, tmp_path, capsys):
    with pytest.raises(ValueError, match="spike: the run has recorded none"):
        trace.main([str(case.run), "--spike"])
    events = case.run / "events.jsonl"
    kept = events.read_bytes()
    found = ((5, 9.0), (9, 20.0), (3, "99"), (4, None), ("7", 99.0), (None, 99.0))  # only two of them by our own hand
    spikes = [{"time": 1.0, "step": step, "kind": "spike", "text": "", "value": z} for step, z in found]
    events.write_text("".join(json.dumps(spike) + "\n" for spike in spikes))
    assert trace.main([str(case.run), "--spike", "--top", "3"]) == 0
    events.write_bytes(kept)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 9, from the checkpoint of step 8")
    assert lines[1].split()[:4] == ["loss", "share", "gradient", "targets"] and len(lines) == 5


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "give the --step to trace, or --spike"),
        (["--step", "999"], "step = 999: the run has steps 1 to"),
        (["--step", "3", "--without", "nothing.json:7"], "without = nothing.json:7: no such document"),
        (["--step", "3", "--until", "x"], "--until x: expected an integer"),
        (["--step", "-1"], "step = -1 must not be negative"),
        (["--step", "3", "--top", "-1"], "top = -1 must not be negative"),
        (["--step", "3", "--until", "5"], "until = 5: only with --without"),
        (["--step", "3", "--without", "1", "--until", "2"], "until = 2: expected a step from the traced one, 3, to"),
        (
            ["--step", "3", "--without", "1", "--until", "999"],
            "until = 999: expected a step from the traced one, 3, to",
        ),
    ],
)
def test_mistakes_are_one_line(case, more, told):
    with pytest.raises(ValueError, match=told):
        trace.main([str(case.run), *more])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
