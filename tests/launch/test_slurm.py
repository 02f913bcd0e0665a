"""launch/slurm.sbatch under a real Slurm of one node on this machine: at its time limit the run is told to stop, saves,
and goes on in the same job until it is done, with the result that it would have had without.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import LAUNCH, ROOT
from tests.support.program import last_step
from tests.support.synthetic import write_data, write_model
from tests.support.training import train

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
MISSING = [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("LOGTRAIN_MANY_NODES"), reason="takes ten minutes; LOGTRAIN_MANY_NODES=1 runs it"
    ),
    pytest.mark.skipif(
        bool(MISSING), reason=f"needs {', '.join(MISSING)} (Debian: slurmctld slurmd slurm-client munge)"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: slurmd starts jobs as their users"),
]
SECONDS = 100  # of steps: more than fit into a limit of two minutes, less than into two such
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={port}
SlurmdPort={next_port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
GresTypes=gpu
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 Gres=gpu:8
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def sh(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder with the logs of a Slurm that runs."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    for i in range(8):
        (folder / f"gpu{i}").touch()
    port = free_port()
    facts = {"host": socket.gethostname(), "folder": folder, "port": port, "next_port": port + 1}
    (folder / "slurm.conf").write_text(CONF.format(**facts))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin")
    places = [
        f"--{what}={folder}/munge.{what.split('-')[0]}" for what in ("socket", "pid-file", "log-file", "seed-file")
    ]
    daemons = [
        subprocess.Popen(["munged", "--force", "--foreground", f"--key-file={folder}/key", *places]),
        subprocess.Popen(["slurmctld", "-D"]),
        subprocess.Popen(["slurmd", "-D"]),
    ]
    try:
        wait_for(lambda: "idle" in subprocess.run(["sinfo"], capture_output=True, text=True).stdout, 30, folder)
        yield folder
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(happened, seconds: float, folder: Path) -> None:
    end = time.monotonic() + seconds
    while not happened():
        logs = "".join(path.read_text()[-3000:] for path in folder.glob("slurm*.log"))
        assert time.monotonic() < end, f"not within {seconds} s: {logs}"
        time.sleep(0.5)


def test_a_time_limit_costs_nothing(slurm, tmp_path, monkeypatch):
    model = write_model(tmp_path / "model", hidden_size=32, vocab_size=130, num_attention_heads=4)
    data = write_data(tmp_path / "data", model, seq_len=32, lengths={"train": [32] * 600})
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--loader.seq_len", "32"]
    flags += ["--loader.rows_per_step", "2", "--trainer.epochs", "99", "--trainer.max_steps"]
    assert train([*flags, "40", "--runs", str(tmp_path / "probe")]) == 0
    (*_, last) = (tmp_path / "probe" / "run" / "metrics.jsonl").read_text().splitlines()
    steps = int(SECONDS / json.loads(last)["step_seconds"])
    flags.append(str(steps))
    limits = ["--time=2", "--signal=TERM@30", "--chdir", ROOT, f"--output={slurm}/job.log", "--export=ALL"]
    environment = {"PET_NPROC_PER_NODE": "1", "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [LAUNCH / "slurm.sbatch", "cpt", *flags, "--runs", tmp_path / "slurmed"]
    job = sh("sbatch", "--parsable", *limits, *command).strip()

    def is_over() -> bool:
        told = sh("scontrol", "show", "job", job)
        assert not any(f"JobState={state}" in told for state in ("FAILED", "TIMEOUT", "CANCELLED")), told
        return "JobState=COMPLETED" in told

    wait_for(is_over, 700, slurm)  # of which Slurm takes 2 minutes before it starts a job again
    run, said = tmp_path / "slurmed" / "run", (slurm / "job.log").read_text()
    assert f"of {steps}, saved; --resume auto goes on" in said
    assert "resumed from" in said
    assert last_step(run) == steps
    assert train([*flags, "--runs", str(tmp_path / "whole")]) == 0
    whole = tmp_path / "whole" / "run"
    assert (run / "export" / "model.safetensors").read_bytes() == (whole / "export" / "model.safetensors").read_bytes()
    losses = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["loss"] for folder in (run, whole)]
    assert losses[0] == losses[1]
