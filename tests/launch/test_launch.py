"""The launchers as a shell or a scheduler meets them: what signals do, and which exit status comes out."""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from logtrain.__main__ import commands
from tests.support import LAUNCH, ROOT, without_waits
from tests.support.program import Program, last_step
from tests.support.synthetic import write_data, write_model

TERM, KILL = -signal.SIGTERM, -signal.SIGKILL  # as a parent sees the end of a process by a signal

WORKER = """
import os, pathlib, signal, sys, time
how, folder, rank, stopped = sys.argv[1], pathlib.Path(sys.argv[2]), os.environ["RANK"], []
if how == "stop":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.append(1))
(folder / ("ready-" + rank)).touch()
if how == "wrong":  # as core/entry.py ends: rank 0 speaks, the others wait for it
    if rank == "0":
        sys.exit(print("error: one clear line", file=sys.stderr) or 2)
    time.sleep(60)
if how == "crash" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
while not stopped:
    time.sleep(0.01)
time.sleep(1.0)  # a save takes a while, and not equally long on all ranks
if rank == "1":
    time.sleep(0.5)
(folder / ("saved-" + rank)).touch()
sys.exit(75)
"""


@pytest.fixture
def start(tmp_path):
    """Starts two fake workers under launch/torchrun.py and waits until they run."""

    def start(how: str) -> Program:
        (tmp_path / "worker.py").write_text(WORKER)
        flags = ["--standalone", "--nproc_per_node", "2", str(tmp_path / "worker.py"), how, str(tmp_path)]
        environment = {"OMP_NUM_THREADS": "1"}
        launcher = Program(flags, tmp_path / "said", entry=str(LAUNCH / "torchrun.py"), environment=environment)
        first = 1 if how == "wrong" else 2  # it may end before the other has begun
        launcher.until_or_end(lambda: len(list(tmp_path.glob("ready-*"))) >= first)
        return launcher

    return start


def until(happened, process: subprocess.Popen, seconds: float = 120) -> None:
    for _ in range(int(seconds * 50)):
        if happened():
            return
        assert process.poll() is None or happened(), "it has ended before that"
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"not within {seconds} s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_request_lets_the_workers_save_and_gives_75(start, tmp_path, number):
    launcher = start("stop")
    launcher.send(number)
    assert launcher.wait(240) == [75], launcher.output.read_text()
    assert len(list(tmp_path.glob("saved-*"))) == 2
    assert launcher.output.read_text() == ""


def test_a_wrong_input_is_one_line_and_the_status_of_the_worker(start):
    launcher = start("wrong")
    assert (launcher.wait(240), launcher.output.read_text()) == ([2], "error: one clear line\n")


def test_a_killed_worker_is_named_and_ends_the_others(start):
    launcher = start("crash")
    assert (launcher.wait(240), launcher.output.read_text()) == ([137], "torchrun: rank 1 was killed by SIGKILL\n")


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        ([75, 75], 75),
        ([75, TERM], 75),  # rank 1 was ended on its way out
        ([TERM, 75], 75),
        ([2, TERM, TERM], 2),
        ([TERM, 2], 2),
        ([75, 1], 1),  # one has not saved
        ([KILL, TERM, 75], 137),
        ([130, TERM], 130),
        ([TERM, TERM], 143),  # stopped before there was anything to save
    ],
)
def test_exit_status(codes, status):
    spec = importlib.util.spec_from_file_location("launch_torchrun", LAUNCH / "torchrun.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.exit_status(codes) == status


def test_run_sh_starts_the_commands_that_say_so_and_no_other():
    """Those whose docstring shows `launch/run.sh COMMAND`; README.md names the same."""
    row = re.search(r"^\| `launch/run\.sh` \| (.+) on every GPU", (ROOT / "README.md").read_text(), re.M)[1]
    on_ranks = re.split(r", | or ", row)
    assert {"cpt", "sft", "doctor"} < {*on_ranks} < commands().keys()
    for command in ("", "chat", "core", "--model"):
        result = subprocess.run([LAUNCH / "run.sh", command], capture_output=True, text=True)
        expected = (
            f"run.sh: expected one of {', '.join(sorted(on_ranks))} first, not '{command}'; --help shows examples"
        )
        assert (result.returncode, result.stderr.strip()) == (2, expected)


@pytest.mark.slow
def test_cpt_stops_with_75_and_goes_on(tmp_path):
    """launch/run.sh cpt with the real trainer on two ranks: SIGTERM saves; --resume auto finishes."""
    model = write_model(tmp_path / "model", hidden_size=32, vocab_size=130, num_attention_heads=4)
    data = write_data(tmp_path / "data", model, seq_len=32, lengths={"train": [32] * 200})
    run = tmp_path / "stopped"
    flags = ["--name", "stopped", "--model", str(model), "--data", str(data), "--runs", str(tmp_path)]
    flags += ["--loader.seq_len", "32", "--loader.rows_per_step", "2", "--trainer.log_every", "1"]
    command = [LAUNCH / "run.sh", "cpt", *flags]
    environment = {**os.environ, "PET_NPROC_PER_NODE": "2", "VIRTUAL_ENV": sys.prefix, "PYTHONUNBUFFERED": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until(lambda: last_step(run) >= 2, first)
    first.terminate()
    _, errors = first.communicate(timeout=240)
    assert (first.returncode, without_waits(errors)) == (75, "")
    saved = last_step(run)
    assert 2 <= saved < 100
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{saved:06d}"]

    flags += ["--resume", "auto", "--trainer.log_every", "100"]
    second = Program(flags, tmp_path / "said", ranks=2)  # as ranks that a launcher has started
    assert second.wait(240) == [0, 0], second.output.read_text()
    assert f"resumed from {run}/checkpoints/step-{saved:06d}" in second.output.read_text()
    assert last_step(run) == 100
    assert (run / "export" / "model.safetensors").exists()


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (143, True), (0, False), (2, False)])
def test_slurm_requeues_what_has_stopped(tmp_path, status, requeued):
    """The batch script with stand-ins for Slurm's commands: it starts one launcher a node and hands its status on."""
    fakes = {
        "srun": f'printf "%s\\n" "srun $*" "$PET_NNODES $PET_RDZV_ENDPOINT $PET_RDZV_ID" >>calls; exit {status}',
        "scontrol": 'if [ "$1" = show ]; then printf "%s\\n" n01 n02; else echo "scontrol $*" >>calls; fi',
    }
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[01-02]"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", "cpt", "a.toml", "--name", "x"], cwd=tmp_path, env=environment
    )
    assert job.returncode == status
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0].endswith("launch/run.sh cpt a.toml --name x --resume auto")
    assert calls[1] == "2 n01:29500 17-0"
    assert calls[2:] == (["scontrol requeue 17"] if requeued else [])


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.5])  # seconds: before they have read a line of theirs, and while they import
def test_the_ranks_of_a_killed_launcher_end_with_it(tmp_path, delay):
    """Even before they have met, when the one that has come waits for the other."""
    model = write_model(tmp_path / "model", hidden_size=32, vocab_size=130, num_attention_heads=4)
    data = write_data(tmp_path / "data", model, seq_len=32, lengths={"train": [32] * 200})
    command = [LAUNCH / "run.sh", "cpt", "--name", "orphans", "--model", model, "--data", data, "--runs", tmp_path]
    command += ["--loader.seq_len", "32", "--loader.rows_per_step", "2"]
    environment = {**os.environ, "PET_NPROC_PER_NODE": "2", "VIRTUAL_ENV": sys.prefix}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    launcher = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ranks() -> list[Path]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                text = path.read_bytes()
                if b"logtrain.cpt" in text and str(tmp_path).encode() in text and b"torchrun" not in text:
                    found.append(path)
        return found

    until(lambda: len(ranks()) == 2, launcher)
    time.sleep(delay)
    launcher.kill()
    launcher.wait()
    began = time.monotonic()
    while ranks():
        assert time.monotonic() - began < 10, "orphans after 10 s"
        time.sleep(0.05)
