"""The pairs of a step of `logtrain dpo`, each with loss and margin; a rerun is the run, one without a pair is not."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from logtrain import trace
from logtrain.core.run_folder import read_run_config
from logtrain.training.config import RunConfig
from logtrain.training.data_kinds import as_trained
from logtrain.training.rerun import Rerun, places_in, ranked
from logtrain.training.setup import set_up
from tests.entries.test_trace import rerun_equal, traced
from tests.support.evaluation import write_chat_model
from tests.support.pairs import make_pairs, prepare_pairs
from tests.support.ranks import Ranks
from tests.support.training import records, train

pytestmark = pytest.mark.slow

DPO, POISON = "logtrain.dpo", 17


def flags_of(model: Path, data: Path, runs: Path, *more: str) -> list[str]:
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--runs", str(runs), "--loader.seq_len", "96"]
    flags += ["--loader.rows_per_step", "4", "--trainer.epochs", "3", "--trainer.log_every", "1", "--dpo.beta", "0.5"]
    flags += ["--lora.rank", "0", "--optim.lr", "1e-3", "--trainer.save_every", "4", "--trainer.keep", "0"]
    return [*flags, *more]


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    """A run on pairs of which one has its answers the wrong way round."""
    folder = tmp_path_factory.mktemp("trace")
    model, rows = write_chat_model(folder / "model", 0.05), make_pairs(60)
    rows[POISON]["chosen"], rows[POISON]["rejected"] = rows[POISON]["rejected"], rows[POISON]["chosen"]
    with pytest.MonkeyPatch.context() as patched:
        data = prepare_pairs(folder, model, rows, patched, "--valid_fraction", "0.1")
    flags = flags_of(model, data, folder / "runs")
    assert train(flags, DPO) == 0
    return SimpleNamespace(model=model, data=data, run=folder / "runs" / "run")


def step_of_poison(run: Path) -> int:
    """The step of the last epoch that has the poisoned pair, counted from 1."""
    of_run = set_up(as_trained(read_run_config(run, RunConfig)))
    loader = of_run.data.train
    steps = range(2 * loader.steps_per_epoch, 3 * loader.steps_per_epoch)
    pairs = {step: [place.split.origin(place.document)[1] for place in places_in(loader, step)] for step in steps}
    of_run.world.close()
    return next(step for step, rows in pairs.items() if POISON in rows) + 1


def test_the_pairs_of_a_step_are_all_with_their_losses_and_margins(case, capsys):
    step = step_of_poison(case.run)
    assert trace.main([str(case.run), "--step", str(step), "--json", "--top", "0"]) == 0
    *pairs, told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    made = (step - 1) % 4
    assert told["told"].endswith(f"; {made} of {made} recorded steps are the same bit for bit" if made else "against")
    (record,) = [record for record in records(case.run) if record["step"] == step]
    assert all(pair["targets"] == 1 for pair in pairs)
    for name, key in (("loss", "loss"), ("margin", "margin")):
        assert sum(pair[name] for pair in pairs) / len(pairs) == pytest.approx(record[key], rel=1e-5)
    assert sum(pair["margin"] > 0 for pair in pairs) / len(pairs) == pytest.approx(record["accuracy"])


@pytest.mark.parametrize("with_gradients", [False, True])
def test_a_pair_the_wrong_way_round_ranks_first(case, with_gradients):
    step = step_of_poison(case.run)
    of_run = set_up(as_trained(read_run_config(case.run, RunConfig)))
    rerun = Rerun(of_run, step)
    list(rerun.advance(step - 1))
    pairs = rerun.weigh(with_gradients)
    first, *others = ranked(pairs)
    assert first.row == POISON and first.margin is not None and first.margin < 0 < max(pair.margin for pair in others)
    if with_gradients:  # each is a part of the step's
        (_, _, norm) = next(rerun.advance(step))
        assert max(pair.grad_norm for pair in pairs) > 0 and norm <= sum(p.grad_norm for p in pairs) * (1 + 1e-5)
    of_run.world.close()


def test_without_a_pair_the_run_is_another(case, capsys):
    step = step_of_poison(case.run)
    assert trace.main([str(case.run), "--step", str(step), "--without", f"pairs.json:{POISON}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    compared = next(line for line in lines if line.startswith("without 1 documents"))
    assert compared.endswith("recorded steps are the same bit for bit") and " 0 of" not in compared
    change = next(line for line in lines if line.startswith(f"step {step}: "))
    before, after = (float(word) for word in change.split()[3:6:2])
    assert after < before - 0.01  # a mean over the others alone
    assert any(line.startswith("held out after step") for line in lines)
    table = next(line for line in lines if line.startswith("loss"))
    assert table.split()[:4] == ["loss", "share", "margin", "document"]


@pytest.mark.parametrize("size", [1, 2])
def test_an_empty_exclusion_is_the_run_bit_for_bit(case, ranks: Ranks, tmp_path, size):
    """The weights, too, and on each number of ranks a pair is left out once."""
    flags = flags_of(case.model, case.data, tmp_path, "--trainer.max_steps", "12")
    assert ranks.run(size, train, flags, DPO) == [0] * size
    assert ranks.run(size, rerun_equal, tmp_path / "run") == [True] * size
    pair = first_pair(tmp_path / "run", 9)
    told = ranks.run(size, traced, [str(tmp_path / "run"), "--step", "10", "--spike", "--without", str(pair)])
    assert "without 1 documents, from step 9; " in told[0] and "0 of" not in told[0] and not any(told[1:])


def first_pair(run: Path, step: int) -> int:
    """The number of a pair of a step, counted from 1."""
    of_run = set_up(as_trained(read_run_config(run, RunConfig)))
    place, *_ = places_in(of_run.data.train, step - 1)
    of_run.world.close()
    return place.document


def test_adapters_are_traced_as_well(case, tmp_path, capsys):
    flags = flags_of(case.model, case.data, tmp_path, "--lora.rank", "4", "--trainer.max_steps", "7")
    assert train(flags, DPO) == 0
    assert trace.main([str(tmp_path / "run"), "--step", "7"]) == 0
    assert "; 2 of 2 recorded steps are the same bit for bit" in capsys.readouterr().out


def test_a_run_whose_reference_is_gone_is_not_traced(case, tmp_path):
    data = shutil.copytree(case.data, tmp_path / "data")
    assert train(flags_of(case.model, data, tmp_path, "--trainer.max_steps", "2"), DPO) == 0
    for file in data.glob("reference-*-train.json"):
        file.unlink()
    with pytest.raises(ValueError, match=r"reference-.*-train.npy: missing"):
        trace.main([str(tmp_path / "run"), "--step", "2"])
    torch.distributed.destroy_process_group()
    assert not list(data.glob("reference-*-train.json"))
