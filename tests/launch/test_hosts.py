"""launch/run.sh on several machines, which are network namespaces here: what comes of a run does not depend on the
link, and one that vanishes ends the job, is named, and costs nothing that was saved.
"""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import LAUNCH
from tests.support.hosts import PORT, Hosts, ended, hosts, missing, rendezvous
from tests.support.program import last_step
from tests.support.ranks import Ranks
from tests.support.synthetic import write_data, write_model
from tests.support.training import train

WHY = missing() if os.environ.get("LOGTRAIN_MANY_NODES") else "takes minutes; LOGTRAIN_MANY_NODES=1 runs it"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY), reason=WHY)]
STEPS, TIMEOUT = 30, 6.0
AHEAD = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <sys/time.h>
#define AHEAD 3600
int clock_gettime(clockid_t clock, struct timespec *at) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(clock, at);
    if (clock == CLOCK_REALTIME) at->tv_sec += AHEAD;
    return done;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""
EXACT = ("step", "loss", "grad_norm", "lr", "targets")


@pytest.fixture(scope="module")
def case(tmp_path_factory, ranks: Ranks) -> SimpleNamespace:
    """A run of two ranks, and of four in two replicas, each made on one machine."""
    folder = tmp_path_factory.mktemp("hosts")
    model = write_model(folder / "model", hidden_size=32, intermediate_size=48, vocab_size=130, num_attention_heads=4)
    data = write_data(folder / "data", model, seq_len=32, lengths={"train": [32, 20, 9] * 200})
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--optim.lr", "1e-3", "--resume", "auto"]
    flags += ["--loader.seq_len", "32", "--loader.rows_per_step", "4", "--trainer.max_steps", str(STEPS)]
    flags += ["--trainer.log_every", "1", "--trainer.save_every", "3", "--parallel.timeout", str(TIMEOUT)]
    hsdp = [*flags, "--parallel.shard_ranks", "2"]
    assert ranks.run(2, train, [*flags, "--runs", str(folder / "two")]) == [0, 0]
    assert ranks.run(4, train, [*hsdp, "--runs", str(folder / "four")]) == [0] * 4
    return SimpleNamespace(flags=flags, hsdp=hsdp, two=folder / "two" / "run", four=folder / "four" / "run")


def start(there: Hosts, flags: list[str], runs: Path, ranks: int = 1, **more: str) -> list:
    command, environment = [LAUNCH / "run.sh", "cpt", *flags, "--runs", runs], rendezvous(there, ranks) | more
    return [there.start(i, command, runs / f"said-{i}", environment) for i in range(len(there.names))]


def static(node: int) -> dict[str, str]:
    """A rendezvous without heartbeats: those of c10d are read by the clocks of others, which are to agree."""
    meeting = {"PET_RDZV_BACKEND": "static", "PET_MASTER_ADDR": "node0", "PET_MASTER_PORT": str(PORT)}
    return {**meeting, "PET_RDZV_ENDPOINT": "", "PET_NODE_RANK": str(node)}


def said(runs: Path) -> str:
    return "".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(runs.glob("said-*")))


def series(run: Path) -> list[dict]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: record[key] for key in EXACT} for record in records if "loss" in record]


def is_equal(run: Path, other: Path) -> bool:
    weights = [(folder / "export" / "model.safetensors").read_bytes() for folder in (run, other)]
    return series(run) == series(other) and weights[0] == weights[1]


def until(happened, processes: list, runs: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end and all(process.poll() is None for process in processes), said(runs)
        time.sleep(0.01)


def test_two_replicas_over_a_slow_link_that_loses_packets(case, tmp_path):
    with hosts(2) as there:
        for i in range(2):
            there.spoil(i, "40mbit", 2)
        processes = start(there, case.hsdp, tmp_path, ranks=2)
        assert ended(processes, 150) == [0, 0], said(tmp_path)
    assert is_equal(tmp_path / "run", case.four)


@pytest.mark.parametrize(("host", "how"), [(0, "power"), (0, "cable"), (1, "cable")])
def test_a_host_that_vanishes(case, tmp_path, host: int, how: str):
    """By its power, or by its cable, which leaves both sides waiting. The first keeps the store in which all met."""
    with hosts(2) as there:
        processes = start(there, case.flags, tmp_path)
        until(lambda: last_step(tmp_path / "run") >= 5, processes, tmp_path)
        there.kill(host) if how == "power" else there.cut_off(host)
        began = time.monotonic()
        status = ended([processes[1 - host]], 100)
        there.kill(host)
        assert status == [3], said(tmp_path)
        assert time.monotonic() - began < 3 * TIMEOUT + 45, said(tmp_path)  # 45: torchrun looks for its store, twice
        told = (tmp_path / f"said-{1 - host}").read_text()
        assert (
            f"error: rank {host} on node{host} " in told or "error: node1: no meeting of all machines at node0:" in told
        )
        assert "Traceback" not in told
        if host == 0:
            return
        there.connect(host)
        processes = start(there, case.flags, tmp_path)
        assert ended(processes, 90) == [0, 0], said(tmp_path)
    assert is_equal(tmp_path / "run", case.two)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a core for each of two machines")
def test_the_doctor_names_the_slow_one_of_two_machines(tmp_path):
    """Each has a core of its own, one of which others use, too."""
    command = [LAUNCH / "run.sh", "doctor", "--runs", tmp_path / "runs", "--seconds", "2", "--json"]
    busy = "for i in 1 2 3; do (while :; do :; done) & done;"
    with hosts(2) as there:
        environment = rendezvous(there, 1)
        before = ["taskset -pc 0 $$ > /dev/null;", f"taskset -pc 1 $$ > /dev/null; {busy}"]
        processes = [there.start(i, command, tmp_path / f"said-{i}", environment, before[i]) for i in range(2)]
        first, second = ended(processes, 150)
        assert first == 2 and second in (2, 3), said(tmp_path)  # 3: its launcher finds that of the first gone already
    (line,) = [line for line in (tmp_path / "said-0").read_text().splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert [(device["rank"], device["node"]) for device in found["devices"]] == [(0, "node0"), (1, "node1")]
    assert [facts["node"] for facts in found["machines"]] == ["node0", "node1"]
    slow = [problem for problem in found["problems"] if "times as long as the others for matrix products" in problem]
    assert [problem.partition(" takes ")[0] for problem in slow] == ["rank 1 on node1 (CPU)"], found["problems"]
    products = [device["speed"]["product"] for device in found["devices"]]
    assert f"takes {products[0] / products[1]:.2f} times as long" in slow[0]


def test_a_name_that_nobody_knows(case, tmp_path):
    with hosts(1) as there:
        (process,) = start(there, case.flags, tmp_path, PET_NNODES="2", PET_RDZV_ENDPOINT="node7.nowhere:29500")
        assert ended([process], 90) == [2]
    assert said(tmp_path).splitlines()[1:] == [
        "error: PET_RDZV_ENDPOINT = node7.nowhere:29500: node0 knows no machine of that name; give its address, or "
        "enter it in /etc/hosts"
    ]


@pytest.mark.skipif(not (shutil.which("bindfs") and shutil.which("cc")), reason="needs bindfs and a C compiler")
def test_four_hosts_each_of_which_remembers_for_seconds_what_it_has_seen_of_the_shared_disk(case, tmp_path):
    """As over NFS: names and sizes, and that there is no such name. The run before has left half a checkpoint. One of
    the clocks is an hour ahead.
    """
    ahead = tmp_path / "ahead.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", ahead, "-x", "c", "-"], input=AHEAD.encode(), check=True)
    real, seen = tmp_path / "real", tmp_path / "seen"
    (real / "run" / "checkpoints" / ".step-000003.partial").mkdir(parents=True)
    (real / "run" / "config.toml").write_bytes((case.four / "config.toml").read_bytes())
    seen.mkdir()
    caches = ",".join(f"{kind}_timeout=4" for kind in ("attr", "entry", "negative"))
    look = f"stat -t {seen}/run/checkpoints/step-0000{STEPS} {seen}/run/.export.partial/config.json"
    with hosts(4) as there:
        processes = []
        for i in range(4):
            environment = rendezvous(there, 1) | static(i)
            command = [LAUNCH / "run.sh", "cpt", *case.hsdp, "--runs", seen]
            mount = f"bindfs -o {caches} {real} {seen}; (while sleep 0.3; do {look}; done) >/dev/null 2>&1 &"
            apart = {"LD_PRELOAD": str(ahead)} if i == 3 else {}
            processes.append(there.start(i, command, tmp_path / f"said-{i}", environment | apart, mount))
        assert ended(processes, 200) == [0] * 4, said(tmp_path)
    assert is_equal(real / "run", case.four)
