"""A short slice of the storm: nothing that is done to a command changes what it gives without a word. And the storm
sees what it must see.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.storm import corruption
from tests.storm.ground import Ground
from tests.storm.outcome import BAD
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


def flip_a_weight(file, _random, _others) -> str:
    weights = file.with_name("adapter_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-2] ^= 0x40
    weights.write_bytes(content)
    return "a bit of a weight flipped"
