"""A stop at any moment of a run: acknowledged within a second, over within two micro-batches, nothing lost but the step
under way.
"""

import json
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from logtrain.observe.goodput import account, read_attempts
from tests.support.program import Program, last_step
from tests.support.ranks import Ranks
from tests.support.synthetic import write_data, write_model
from tests.support.training import train

STEPS, MICRO_BATCHES = 6, 12
pytestmark = pytest.mark.slow
EXACT = ("step", "loss", "grad_norm", "lr", "tokens", "set", "valid_loss")


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    """A run of 6 steps, each of 12 micro-batches, saved and validated after every second, and the whole of it."""
    folder = tmp_path_factory.mktemp("stop")
    model = write_model(folder / "model", num_hidden_layers=3, hidden_size=128, intermediate_size=384)
    lengths = {"train": [256] * STEPS * MICRO_BATCHES, "valid": [256] * 6}
    data = write_data(folder / "data", model, seq_len=256, lengths=lengths)
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--optim.lr", "1e-3"]
    flags += ["--loader.seq_len", "256", "--loader.rows_per_step", str(MICRO_BATCHES)]
    flags += ["--trainer.log_every", "4", "--trainer.save_every", "2", "--trainer.valid_every", "2"]
    return SimpleNamespace(folder=folder, flags=flags)


@pytest.fixture(scope="module")
def whole(case, ranks: Ranks) -> dict[int, Path]:
    for size in (1, 2):
        assert ranks.run(size, train, [*case.flags, "--runs", str(case.folder / f"whole-{size}")]) == [0] * size
    return {size: case.folder / f"whole-{size}" / "run" for size in (1, 2)}


def series(run: Path) -> list[dict]:
    """What a run gave at the steps that every run records."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    kept = [record for record in records if record["step"] % 2 == 0]
    return [{key: record[key] for key in EXACT if key in record} for record in kept]


def stop(case, runs: Path, size: int, step: int, after: float, most: float) -> None:
    """Start or resume a run, and signal it `after` seconds after that step was recorded, or after its folder was there
    for step 0: it is acknowledged, over in `most` seconds, and what was trained is saved.
    """
    run = runs / "run"
    is_new = last_step(run) == 0
    program = Program([*case.flags, "--runs", str(runs), "--resume", "auto"], runs / "output", ranks=size)
    program.until(lambda: is_new or "resumed from" in program.output.read_text())
    program.until(lambda: last_step(run) >= step if step else (run / "config.toml").exists())
    time.sleep(after)
    sent = time.monotonic()
    program.send(signal.SIGTERM)
    program.until_or_end(lambda: "SIGTERM: " in program.output.read_text())
    told = time.monotonic() - sent
    assert program.wait(300) == [75] * size, program.output.read_text()
    ended, printed = time.monotonic() - sent, program.output.read_text()
    assert told <= 1, printed
    assert ended <= most, printed
    stopped = last_step(run)
    saved = sorted(path.name for path in (run / "checkpoints").iterdir()) if (run / "checkpoints").exists() else []
    assert not stopped or saved[-1] == f"step-{stopped:06d}", (printed, saved)


def step_seconds(run: Path) -> float:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return min(record["step_seconds"] for record in records if "step_seconds" in record)


def finish(case, whole, runs: Path, size: int) -> None:
    """Let a run that was stopped go on to its end: it is the one that was never stopped, bit for bit."""
    run = runs / "run"
    program = Program([*case.flags, "--runs", str(runs), "--resume", "auto"], runs / "output", ranks=size)
    assert program.wait(300) == [0] * size, program.output.read_text()
    assert series(run) == series(whole[size])
    assert (run / "export/model.safetensors").read_bytes() == (whole[size] / "export/model.safetensors").read_bytes()
    attempts = read_attempts(run)
    assert account(attempts).wall == pytest.approx(attempts[-1].last - attempts[0].began, rel=0.01)


@pytest.mark.alone
def test_a_stop_within_a_step_drops_it(case, whole, tmp_path):
    stop(case, tmp_path, 1, 0, 1.0, 20)
    finish(case, whole, tmp_path, 1)


@pytest.mark.alone
@pytest.mark.parametrize("size", [1, 2])
def test_stops_at_ten_random_moments(case, whole, tmp_path, size):
    """Of four runs, each stopped up to three times: within a step and a half of where steps 0, 2, 4 were recorded."""
    chosen, longest = random.Random(size), 1.5 * step_seconds(whole[size])
    for number, steps in enumerate([(0, 2, 4), (0, 2, 4), (0, 2, 4), (chosen.choice((0, 2, 4)),)]):
        runs = tmp_path / str(number)
        runs.mkdir()
        for step in steps:
            stop(case, runs, size, step, chosen.uniform(0, longest), 20)
        finish(case, whole, runs, size)


def test_a_stop_between_the_last_step_and_the_end(case, whole, tmp_path):
    """It comes in time, and the run goes on later, or too late: what is exported is whole, or is not there."""
    records = map(json.loads, (whole[1] / "metrics.jsonl").read_text().splitlines())
    last = max(record["time"] for record in records if "loss" in record)
    chosen, longest = random.Random(0), read_attempts(whole[1])[-1].last - last
    for number in range(6):
        runs = tmp_path / str(number)
        runs.mkdir()
        weights = runs / "run/export/model.safetensors"
        program = Program([*case.flags, "--runs", str(runs)], runs / "output")
        program.until(lambda run=runs / "run": last_step(run) >= STEPS)
        time.sleep(chosen.uniform(0, longest))
        program.send(signal.SIGTERM)
        status = program.wait(300)
        assert status == [0 if weights.exists() else 75], program.output.read_text()
        assert not weights.exists() or weights.read_bytes() == (whole[1] / "export/model.safetensors").read_bytes()
        finish(case, whole, runs, 1)


@pytest.mark.parametrize("size", [1, 2])
def test_a_stop_once_the_export_has_its_name_comes_too_late(case, tmp_path, size):
    """The run is finished: its status is 0, and that is how its last attempt ended."""
    run = tmp_path / "run"
    program = Program([*case.flags, "--runs", str(tmp_path)], tmp_path / "output", ranks=size)
    program.until((run / "export").exists)
    program.send(signal.SIGTERM)
    assert program.wait(300) == [0] * size, program.output.read_text()
    assert read_attempts(run)[-1].ended == "finished"
