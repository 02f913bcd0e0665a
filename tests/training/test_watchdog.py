"""A rank that is stopped or stuck ends the job, within the timeout and a little more, and is named."""

import json
import platform
import re
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from logtrain.core import watchdog
from logtrain.core.run_folder import check_begun
from logtrain.core.watchdog import Watchdog
from logtrain.core.world import meet
from tests.support.program import Program, last_step
from tests.support.synthetic import write_data, write_model

pytestmark = pytest.mark.slow

TIMEOUT, HOST = 3.0, platform.node()


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("watchdog")
    model = write_model(folder / "model", hidden_size=32, intermediate_size=48, vocab_size=130, num_attention_heads=4)
    data = write_data(folder / "data", model, seq_len=32, lengths={"train": [32] * 4000})
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--parallel.timeout", str(TIMEOUT)]
    flags += ["--loader.seq_len", "32", "--loader.rows_per_step", "2", "--trainer.log_every", "1"]
    return SimpleNamespace(flags=flags)


def said(program: Program) -> list[str]:
    lines = program.output.read_text().splitlines()
    return [line for line in lines if line.startswith("error: ")]


def wait_for(program: Program, rank: int, seconds: float) -> int | None:
    program.processes[rank].join(seconds)
    return program.processes[rank].exitcode


@pytest.mark.alone
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank(case, tmp_path, stopped: int):
    program = Program([*case.flags, "--runs", str(tmp_path)], tmp_path / "output", ranks=2)
    program.until(lambda: last_step(tmp_path / "run") >= 3)
    program.send(signal.SIGSTOP, stopped)
    began = time.monotonic()
    assert wait_for(program, 1 - stopped, 60) == 3
    assert TIMEOUT < time.monotonic() - began < 4 * TIMEOUT
    program.send(signal.SIGKILL, stopped)
    where = f"rank 1 on {HOST}" if stopped else "rank 0 on 127.0.0.1 or its launcher"  # rank 0 keeps the store here
    gone = f"error: {where} does not answer: it is stopped, or its machine is gone, for {TIMEOUT:g} s"
    assert said(program) == [gone, f"error: the job ends; what each rank was at is in {tmp_path}/run/stacks-rank-*.txt"]
    stacks = tmp_path / "run" / f"stacks-rank-{1 - stopped:05d}.txt"
    assert "train_in_folder" in stacks.read_text()


def test_a_rank_that_is_stopped_before_they_have_met(case, tmp_path):
    program = Program([*case.flags, "--runs", str(tmp_path)], tmp_path / "output", ranks=2)
    program.send(signal.SIGSTOP, 1)
    assert wait_for(program, 0, 60) == 2
    program.send(signal.SIGKILL, 1)
    gone = f"error: rank 1 of 2 has not come within {TIMEOUT:g} s; look at what its machine says"
    assert said(program) == [gone]
    assert not (tmp_path / "run").exists()


@pytest.mark.alone
def test_a_first_rank_that_is_stopped_before_it_has_answered(monkeypatch):
    """Its machine takes the connection, and nobody ever says a word on it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(silent.getsockname()[1])}
        for name, value in {"RANK": "1", "WORLD_SIZE": "2", **address}.items():
            monkeypatch.setenv(name, value)
        began, before = time.monotonic(), set(threading.enumerate())
        with pytest.raises(ValueError, match=r"no way to 127\.0\.0\.1:[0-9]+ within 1 s") as caught:
            meet(1.0)
        assert time.monotonic() - began < 10
        assert "\n" not in str(caught.value)
    for thread in set(threading.enumerate()) - before:
        thread.join(30)  # it ends with the connection, and not with the interpreter


@pytest.mark.alone
def test_a_first_rank_that_is_stopped_before_the_watchdog_has_its_connection(monkeypatch):
    monkeypatch.setattr(watchdog, "OTHER_RANKS_WAIT", 0.1)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    ended, silent = [], threading.Event()

    class Recording(Watchdog):
        def end_job(self, lost: dict[int, str]) -> None:
            ended.append(lost)
            self.closing.set()

    began = time.monotonic()
    watching = Recording(SimpleNamespace(clone=silent.wait), 1, 2, 0.4, Path())
    assert time.monotonic() - began < 0.3, "the rank itself goes on"
    watching.thread.join(20)
    silent.set()
    assert ended == [{0: f"on 10.0.0.1 or its launcher {watchdog.GONE}"}]


def test_nothing_is_left_in_a_folder_before_it_is_a_runs(tmp_path):
    """Rank 0 may be stopped between making the folder and writing its config; the next start finds it free."""
    watchdog = SimpleNamespace(rank=1, stacks=tmp_path, has_run=lambda: Watchdog.has_run(watchdog))
    Watchdog.leave_traces(watchdog)
    assert not list(tmp_path.iterdir()) and not check_begun(tmp_path, resume=True)
    (tmp_path / "config.toml").touch()
    Watchdog.leave_traces(watchdog)
    assert "leave_traces" in (tmp_path / "stacks-rank-00001.txt").read_text()


def test_a_stuck_rank(case, tmp_path):
    """Its process is there, but it gets nothing done. Its stacks show where."""
    flags = [*case.flags, "--runs", str(tmp_path)]
    environment = {"STUCK_AT": "4"}
    program = Program(flags, tmp_path / "output", ranks=2, entry="tests.support.stuck", environment=environment)
    assert sorted(wait_for(program, rank, 60) for rank in (0, 1)) == [3, 3]
    first, second, *_ = said(program)  # without a launcher the other rank speaks, too, when the first has gone
    told = re.fullmatch(rf"error: rank 1 on {HOST} gets nothing done, at the rows of step (\d+), for 3 s", first)
    assert told and 5 <= int(told[1]) <= 6  # two steps are laid out ahead
    assert (
        "time.sleep" in (tmp_path / "run" / "stacks-rank-00001.txt").read_text()
        or "in stuck" in (tmp_path / "run" / "stacks-rank-00001.txt").read_text()
    )
    assert second.startswith("error: the job ends")
    recorded = json.loads((tmp_path / "run" / "gloo-rank-00000.json").read_text())["entries"]
    assert {"gloo:all_reduce"} <= {entry["profiling_name"] for entry in recorded}


def test_a_job_that_gets_something_done_is_left_alone(case, tmp_path):
    """For longer than the timeout."""
    program = Program([*case.flags, "--runs", str(tmp_path), "--parallel.timeout", "2"], tmp_path / "output", ranks=2)
    program.until(lambda: last_step(tmp_path / "run") >= 3)
    time.sleep(3)
    program.send(signal.SIGTERM)
    assert program.wait() == [75, 75], program.output.read_text()
    assert not list(Path(tmp_path / "run").glob("stacks-*"))
