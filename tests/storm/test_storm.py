"""A short slice of the storm: nothing that is done to a command changes what it gives without a word. And the storm
sees what it must see.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.storm import corruption, kill
from tests.storm.execution import Ended, used_by
from tests.storm.ground import Ground
from tests.storm.outcome import BAD, verdict_of
from tests.storm.running import storm
from tests.storm.stages import STAGES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Iterator[Ground]:
    before = Path.cwd()
    yield Ground(tmp_path_factory.mktemp("storm") / "ground")
    os.chdir(before)


def test_a_slice(ground):
    kinds = ["kill", "corruption", "hostile", "full disk"]
    found = list(storm(ground, seed=1309, seconds=12, kinds=kinds))
    assert len(found) >= 3
    assert not [outcome for outcome in found if outcome.verdict in BAD]


def test_a_silent_change_is_seen(ground, monkeypatch):
    """Where nobody compares checksums, a bit that has flipped in an adapter comes through."""
    monkeypatch.setattr(corruption, "READERS", (("runs/sft/adapter", "merge", False),))
    monkeypatch.setattr(corruption, "HOWS", (flip_a_weight,))
    assert corruption.attack(ground, Random(1)).verdict == "refused"
    (ground.kept / "runs/sft/adapter/checksums.json").unlink()
    ground.reset(["runs/sft/adapter"])
    assert corruption.attack(ground, Random(1)).verdict == "changed"
    assert ground.is_equal(STAGES["cpt"])  # what was not attacked stays


def test_a_refusal_that_does_not_say_where_is_seen(ground):
    stage = STAGES["status"]
    for said, verdict in (("error: runs/a/metrics.jsonl: damaged", "refused"), ("error: damaged", "no path")):
        assert verdict_of(ground, stage, Ended([2], said, 1.0, 0.1), 40.0, ["metrics.jsonl"]) == (verdict, said)


@pytest.mark.parametrize(("rank", "wrong"), [(0, ""), (1, "status"), (None, "status")])
def test_no_way_to_the_first_rank_is_said_only_where_that_was_stopped(rank, wrong):
    said = "rank 1: error: here: no way to 127.0.0.1:1 within 8 s (no answer)"
    statuses = [-signal.SIGKILL, 2] if rank != 1 else [2, -signal.SIGKILL]
    ended = Ended(statuses, said, 9.0, 0.1)
    assert kill.wrong_with(STAGES["cpt on 2 ranks"], signal.SIGSTOP, rank, ended) == wrong


def test_what_a_command_uses_itself_is_known():
    """It bounds the time in which it is taken to have waited for a processor."""
    busy = "import time\nwhile time.process_time() < 1: pass\nprint(flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert used_by(process.pid) == pytest.approx(1, abs=0.1)  # the kernel counts in ticks of 10 ms
        assert used_by(os.getpid()) >= 0.9, "with those that it has started"
        process.kill()


def flip_a_weight(file, _random, _others) -> str:
    weights = file.with_name("adapter_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-2] ^= 0x40
    weights.write_bytes(content)
    return "a bit of a weight flipped"
