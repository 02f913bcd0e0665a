"""A run that was stopped, killed or moved to other ranks is the run that was not; and a run directory holds one run."""

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from logtrain.core.config import load
from logtrain.cpt import CptConfig
from logtrain.data import loader
from logtrain.data.epoch import pack_epoch
from logtrain.training import checkpoint, step, trainer
from logtrain.training.checkpoint import Checkpoints, read_facts, tensors_of
from logtrain.training.optim import make_optimizer
from logtrain.training.setup import set_up
from logtrain.training.state import TrainState
from logtrain.training.step import GivenUp
from tests.support.program import Program, last_step
from tests.support.ranks import Ranks
from tests.support.synthetic import write_data, write_model
from tests.support.training import train

pytestmark = pytest.mark.slow

STEPS = 24
EXACT = ("step", "epoch", "loss", "grad_norm", "lr", "tokens", "targets", "set", "valid_loss", "valid_targets")


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    """A model, its data, and the flags of a run of 24 steps in two epochs, saved every third."""
    folder = tmp_path_factory.mktemp("resume")
    model = write_model(folder / "model", hidden_size=32, intermediate_size=48, vocab_size=130, num_attention_heads=4)
    lengths = np.random.default_rng(3).integers(2, 32, 90).tolist()
    data = write_data(folder / "data", model, seq_len=32, lengths={"train": lengths, "valid": lengths[:6]})
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--optim.lr", "1e-3"]
    flags += ["--loader.seq_len", "32", "--loader.rows_per_step", "4"]
    flags += ["--trainer.epochs", "2", "--trainer.max_steps", str(STEPS)]
    flags += ["--trainer.log_every", "1", "--trainer.save_every", "3", "--trainer.valid_every", "7"]
    return SimpleNamespace(folder=folder, model=model, data=data, flags=flags)


@pytest.fixture(scope="module")
def whole(case, ranks: Ranks) -> dict[int, Path]:
    """The run without interruption, on 1 and on 2 ranks."""
    runs = {size: case.folder / f"whole-{size}" for size in (1, 2)}
    for size, folder in runs.items():
        assert ranks.run(size, train, [*case.flags, "--runs", str(folder)]) == [0] * size
    return {size: folder / "run" for size, folder in runs.items()}


def series(run: Path) -> list[dict]:
    """What the steps gave, without what the clock and the machine gave."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: record[key] for key in EXACT if key in record} for record in records]


def weights(run: Path) -> bytes:
    return (run / "export" / "model.safetensors").read_bytes()


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_series_is_without_gaps(whole):
    records = series(whole[2])
    assert [record["step"] for record in records if "loss" in record] == list(range(1, STEPS + 1))
    assert [record["step"] for record in records if "set" in record] == [*range(0, STEPS, 7), STEPS]


@pytest.mark.parametrize("size", [1, 2])
def test_stopped_and_resumed_is_bit_identical(case, whole, ranks: Ranks, tmp_path, size: int):
    flags, run = [*case.flags, "--runs", str(tmp_path)], tmp_path / "run"
    assert ranks.run(size, train, [*flags, "--trainer.stop_after", "10"]) == [75] * size
    assert checkpoints(run) == ["step-000009", "step-000010"]
    half_written = run / "checkpoints" / ".step-000013.partial"  # no later save would replace it
    shutil.copytree(run / "checkpoints" / "step-000009", half_written)
    assert ranks.run(size, train, [*flags, "--resume", "auto"]) == [0] * size
    assert series(run) == series(whole[size])
    assert weights(run) == weights(whole[size])
    assert checkpoints(run) == ["step-000021", "step-000024"]


def test_resumed_on_other_ranks_gives_the_same_losses(case, whole, ranks: Ranks, tmp_path):
    assert ranks.run(2, train, [*case.flags, "--runs", str(tmp_path / "2"), "--trainer.stop_after", "10"]) == [75, 75]
    for size in (1, 4):  # 4: two replicas
        shutil.copytree(tmp_path / "2", tmp_path / str(size))
        flags = [*case.flags, "--runs", str(tmp_path / str(size)), "--resume", "auto"]
        flags += ["--parallel.shard_ranks", "2"] if size == 4 else []
        assert ranks.run(size, train, flags) == [0] * size
        moved, stayed = series(tmp_path / str(size) / "run"), series(whole[2])
        assert [record.keys() for record in moved] == [record.keys() for record in stayed]
        for key in ("loss", "grad_norm", "valid_loss"):
            values = ([record[key] for record in records if key in record] for records in (moved, stayed))
            np.testing.assert_allclose(*values, rtol=1e-5, err_msg=f"{key} on {size} ranks")


def test_killed_at_any_moment_it_resumes_as_if_never_killed(case, whole, tmp_path):
    """Up to seven kills, by turns after a random step and time and while a checkpoint is being written."""
    flags, run = [*case.flags, "--runs", str(tmp_path), "--resume", "auto"], tmp_path / "run"
    random.seed(1309)
    kills, left_behind = 0, 0
    while kills < 7 and last_step(run) < STEPS - 8:  # the rest is for the run that ends
        program, after = Program(flags, tmp_path / "output"), last_step(run) + random.randrange(3)
        if kills % 2:
            program.until(lambda: any((run / "checkpoints").glob(".*.partial")))
        else:
            program.until(lambda step=after: last_step(run) >= step)
            time.sleep(random.uniform(0, 0.02))
        program.send(signal.SIGKILL)
        assert program.wait() == [-signal.SIGKILL]
        kills += 1
        left_behind += any((run / "checkpoints").glob(".*.partial"))
    assert kills >= 3
    assert left_behind, "no kill met a checkpoint being written"
    program = Program(flags, tmp_path / "output")
    assert program.wait() == [0], program.output.read_text()
    assert series(run) == series(whole[1])
    assert weights(run) == weights(whole[1])


def test_one_of_two_ranks_killed_ends_the_other_and_both_resume(case, whole, tmp_path):
    flags, run = [*case.flags, "--runs", str(tmp_path), "--resume", "auto"], tmp_path / "run"
    program = Program(flags, tmp_path / "output", ranks=2)
    program.until(lambda: last_step(run) >= 5)
    program.send(signal.SIGKILL, rank=1)
    first, second = program.wait()
    assert (first not in (0, 75), second) == (True, -signal.SIGKILL), program.output.read_text()
    program = Program(flags, tmp_path / "output", ranks=2)
    assert program.wait() == [0, 0], program.output.read_text()
    assert series(run) == series(whole[2])
    assert weights(run) == weights(whole[2])


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 1), (signal.SIGINT, None)], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_to_any_rank_saves_and_exits_75_on_all(case, whole, tmp_path, number, rank: int | None):
    flags, run = [*case.flags, "--runs", str(tmp_path)], tmp_path / "run"
    program = Program(flags, tmp_path / "output", ranks=2)
    program.until(lambda: last_step(run) >= 5)
    for _ in range(2):  # a launcher sends it once more than the terminal
        program.send(number, rank)
    assert program.wait() == [75, 75], program.output.read_text()
    stopped = last_step(run)
    assert 5 <= stopped < STEPS
    assert checkpoints(run)[-1] == f"step-{stopped:06d}"  # what was trained is saved
    assert f"stopped after step {stopped} of {STEPS}, saved" in program.output.read_text()
    program = Program([*flags, "--resume", "auto"], tmp_path / "output", ranks=2)
    assert program.wait() == [0, 0], program.output.read_text()
    assert series(run) == series(whole[2])
    assert weights(run) == weights(whole[2])


def test_impatience_does_not_cost_the_checkpoint(case, tmp_path):
    """Signals go on coming while the last checkpoint is written."""
    program, run = Program([*case.flags, "--runs", str(tmp_path)], tmp_path / "output"), tmp_path / "run"
    program.until(lambda: last_step(run) >= 5)
    while program.processes[0].exitcode is None:
        program.send(signal.SIGTERM)
        time.sleep(0.001)
    assert program.wait()[0] in (75, -signal.SIGTERM)  # the second: it came when everything was saved
    assert checkpoints(run)[-1] == f"step-{last_step(run):06d}"


def test_sigterm_ends_the_real_command_with_75(case, tmp_path):
    command = [sys.executable, "-m", "logtrain.cpt", *case.flags, "--runs", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            if line.startswith("step=3/"):
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert process.returncode == 75, rest
    stopped = last_step(tmp_path / "run")
    assert checkpoints(tmp_path / "run")[-1] == f"step-{stopped:06d}"
    assert rest.splitlines()[-1] == f"stopped after step {stopped} of {STEPS}, saved; --resume auto goes on"


def test_a_save_is_a_snapshot(case, tmp_path, monkeypatch):
    """The writing is held up until the weights and moments have changed."""
    run = set_up(load(CptConfig, [*case.flags, "--runs", str(tmp_path)]))
    model, changed = run.build_model(run.initial_weights()), threading.Event()
    optimizer = make_optimizer(model, run.config.optim)
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    tensors = tensors_of(model, optimizer)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    write_tensors = checkpoint.write_tensors

    def held_up(*args):
        assert changed.wait(60)
        return write_tensors(*args)

    monkeypatch.setattr(checkpoint, "write_tensors", held_up)
    checkpoints = Checkpoints(tmp_path)
    state = TrainState(data="0", rows_per_step=4, step=1, tokens=7)
    checkpoints.save(model, optimizer, state)
    state.tokens = 8  # as the next step does
    for tensor in tensors.values():
        tensor.fill_(9.0)
    changed.set()
    checkpoints.wait()
    assert checkpoints.load(checkpoints.at(1), model, optimizer) == dataclasses.replace(state, tokens=7)
    after = tensors_of(model, optimizer)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name
    checkpoints.close()
    run.world.close()


@pytest.mark.parametrize(("keep", "stay"), [(0, [1, 2, 3, 4]), (1, [4]), (3, [2, 3, 4])])
def test_the_newest_checkpoints_stay(case, tmp_path, keep: int, stay: list[int]):
    flags = [*case.flags, "--runs", str(tmp_path), "--trainer.save_every", "1", "--trainer.max_steps", "4"]
    assert train([*flags, "--trainer.keep", str(keep)]) == 0
    assert checkpoints(tmp_path / "run") == [f"step-{step:06d}" for step in stay]


def test_the_config_of_a_run_alone_reproduces_it(whole, tmp_path):
    assert train([str(whole[1] / "config.toml"), "--runs", str(tmp_path)]) == 0
    assert series(tmp_path / "run") == series(whole[1])


# ---- a run directory holds one run


@pytest.fixture
def stopped(case, tmp_path) -> SimpleNamespace:
    """A run stopped after two steps, and the flags that go on with it."""
    flags = [*case.flags, "--runs", str(tmp_path)]
    assert train([*flags, "--resume", "auto", "--trainer.stop_after", "2"]) == 75
    return SimpleNamespace(run=tmp_path / "run", new=flags, resume=[*flags, "--resume", "auto"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(flags: list[str], run: Path, message: str) -> None:
    before = contents(run)
    with pytest.raises(ValueError, match=message):
        train(flags)
    assert contents(run) == before


def test_a_run_is_not_overwritten(stopped):
    refused(stopped.new, stopped.run, "run: holds a run already; --resume auto goes on with it")


def test_a_folder_of_something_else_is_not_taken(case, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for flags in ([], ["--resume", "auto"]):
        refused([*case.flags, "--runs", str(tmp_path), *flags], tmp_path / "run", "exists and is not a run")


def test_two_processes_cannot_be_in_a_run(stopped):
    program = Program([*stopped.resume, "--trainer.epochs", "2"], stopped.run.parent / "output")
    program.until(lambda: last_step(stopped.run) > 2)
    program.send(signal.SIGSTOP)
    try:
        refused(stopped.resume, stopped.run, "run: in use by another process")
    finally:
        program.send(signal.SIGKILL)
    assert program.wait() == [-signal.SIGKILL]
    assert train(stopped.resume) == 0  # the lock has died with its holder


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--optim.lr", "2e-3", "was started with optim.lr = 0.001, now it is 0.002"),
        ("--seed", "1", "was started with seed = 1309, now it is 1"),
        ("--loader.rows_per_step", "8", "was started with loader.rows_per_step = 4, now it is 8"),
    ],
)
def test_a_resumed_run_keeps_its_config(stopped, flag: str, value: str, message: str):
    refused([*stopped.resume, flag, value], stopped.run, message)


def test_a_resumed_run_keeps_its_data(case, stopped):
    aside = case.data.with_name("aside")
    case.data.rename(aside)
    try:
        write_data(case.data, case.model, seq_len=32, lengths={"train": [30] * 100}, seed=1)
        refused(
            [*stopped.resume, "--trainer.stop_after", "2"],
            stopped.run,
            "data: has been prepared anew since .*step-000002 was saved",
        )
    finally:
        shutil.rmtree(case.data)
        aside.rename(case.data)


def test_what_does_not_change_the_losses_may_change(case, whole, stopped):
    flags = ["--recompute", "full", "--loader.rows_per_batch", "2", "--trainer.keep", "1", "--export_dtype", "bfloat16"]
    assert train([*stopped.resume, *flags]) == 0
    losses = ([record["loss"] for record in series(run) if "loss" in record] for run in (stopped.run, whole[1]))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert checkpoints(stopped.run) == [f"step-{STEPS:06d}"]


def test_a_resumed_run_packs_no_epoch_that_is_over(case, tmp_path, monkeypatch):
    flags, packed = [*case.flags, "--runs", str(tmp_path)], []

    def spy(split, config, seed, epoch, *more):
        if split.name == "train":
            packed.append(epoch)
        return pack_epoch(split, config, seed, epoch, *more)

    monkeypatch.setattr(loader, "pack_epoch", spy)
    assert train([*flags, "--trainer.stop_after", "15"]) == 75
    assert packed == [0, 1]
    assert train([*flags, "--resume", "auto", "--trainer.stop_after", "16"]) == 75
    assert packed == [0, 1, 1]


def test_the_best_step_is_found_anew_on_another_validation_set(case, tmp_path, capfd):
    lengths = {"train": [9] * 3, "valid": [20] * 9}
    other = write_data(tmp_path / "other", case.model, seq_len=32, lengths=lengths, seed=2)
    no_valid = write_data(tmp_path / "train", case.model, seq_len=32, lengths={"train": [30] * 50})
    flags = [*case.flags, "--data", str(no_valid), "--runs", str(tmp_path), "--trainer.keep_best"]
    flags += ["--trainer.max_steps", "9", "--trainer.valid_every", "1"]
    first, again = ["--valid", f"a={case.data}"], ["--valid", f"b={other}", f"a={case.data}"]
    assert train([*flags, *first, "--trainer.stop_after", "3"]) == 75
    (before,) = (read_facts(path).state for path in [tmp_path / "run" / "checkpoints" / "step-000003"])
    assert (before.best_step, before.best_set) == (3, fingerprint(case.data))
    capfd.readouterr()
    assert train([*flags, *first, "--resume", "auto", "--trainer.stop_after", "4"]) == 75
    assert "best step is found anew" not in "".join(capfd.readouterr())
    assert train([*flags, *again, "--resume", "auto", "--trainer.stop_after", "5"]) == 75
    told = "".join(capfd.readouterr())
    assert "another one than when step 4 was the best: the best step is found anew" in told
    after = read_facts(tmp_path / "run" / "checkpoints" / "step-000005").state
    losses = [record["valid_loss"] for record in series(tmp_path / "run") if record.get("set") == "b"]
    assert (after.best_step, after.best_loss, after.best_set) == (5, losses[-1], fingerprint(other))


def test_a_last_validation_that_was_given_up_is_in_the_checkpoint_once_it_is_made(case, tmp_path, monkeypatch):
    """Which then says what that of a run says that nobody stopped: the best step, and that no validation is due."""
    flags = [*case.flags, "--trainer.max_steps", "4", "--runs", str(tmp_path)]
    last = "checkpoints/step-000004"
    assert train([*flags, "--name", "whole"]) == 0
    calls = []

    def given_up_once(*args):
        calls.append(args)
        if len(calls) == 2:  # the first is that before the first step
            raise GivenUp
        return step.validate(*args)

    monkeypatch.setattr(trainer, "validate", given_up_once)
    assert train(flags) == 75
    stopped = read_facts(tmp_path / "run" / last).state
    assert (stopped.validation_due, stopped.best_step) == (True, 0)
    assert train([*flags, "--resume", "auto"]) == 0
    resumed, whole = (read_facts(tmp_path / name / last).state for name in ("run", "whole"))
    assert resumed.best_step == 4
    assert dataclasses.replace(resumed, records_crc32=0) == dataclasses.replace(whole, records_crc32=0)
    records = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert resumed.records_crc32 == zlib.crc32(records)


def fingerprint(data: Path) -> str:
    return json.loads((data / "manifest.json").read_text())["fingerprint"]


def test_a_finished_run_that_is_resumed_only_exports_again(stopped):
    assert train(stopped.resume) == 0
    before = series(stopped.run), weights(stopped.run), checkpoints(stopped.run)
    assert train(stopped.resume) == 0
    assert (series(stopped.run), weights(stopped.run), checkpoints(stopped.run)) == before
