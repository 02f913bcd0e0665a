"""A job of few ranks is measured as one of hundreds is; and no epoch's turn is felt: see benchmarks/scale.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import scale


@pytest.mark.slow
def test_a_small_job(tmp_path):
    command = [sys.executable, scale.__file__, "--nodes", "4", "--ranks", "2", "--documents", "30000", "--json"]
    command += ["--rows_per_step", "16", "--turn_documents", "5000", "--folder", tmp_path]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    loaders, turn, sockets = map(json.loads, done.stdout.splitlines())
    assert [line["part"] for line in (loaders, turn, sockets)] == ["loaders", "turn", "sockets"]
    assert loaders["tokens"] == scale.lengths(30_000).sum()
    assert 0 < loaders["cpu_seconds_of_the_rank_that_packs"] < loaders["seconds_to_first_step"]
    assert abs(loaders["gib_data_while_next_epoch_is_packed"]) < loaders["gib_imports_alone"]  # 30,000 are next to none
    imports, _, _, data, *_, both = loaders["gib_to_start"].split()
    assert (float(imports), float(data)) == (loaders["gib_imports_alone"], loaders["gib_data_to_first_step"])
    assert float(both) == pytest.approx(float(imports) + float(data), abs=0.011)
    assert turn["steps"] >= 40
    # Of 8 ranks in a ring, each has 2 neighbours; in a barrier it meets those 1, 2 and 4 places on and back.
    assert (sockets["default_sockets"], sockets["control_sockets"], sockets["checkpoint_sockets"]) == (3, 6, 6)
    assert sockets["sockets_a_rank"] == 15
    assert not list(Path(tmp_path).iterdir())


def test_documents_are_as_long_as_nlplogs():
    lengths = scale.lengths(100_000)
    assert abs(lengths.mean() - 444) < 5
    assert lengths.min() >= 2


@pytest.mark.slow
def test_training_does_not_wait_at_an_epochs_turn_of_3_million_documents():
    tries = []
    while not tries or (tries[-1]["longest_but_for_cpu_ms"] >= 50 and len(tries) < 3):  # the machine may be busy
        tries.append(scale.measure_turn(3_000_000))
    assert tries[-1]["steps"] > 50
    assert tries[-1]["longest_but_for_cpu_ms"] < 50
