"""`logtrain doctor` on this machine: alone, and on two ranks that gather and reduce."""

import json

import pytest
import torch

from logtrain import doctor
from logtrain.readiness import disk
from tests.support.ranks import Ranks


def found_by_two(folder: str) -> str:
    """What one of two ranks prints."""
    import contextlib
    import io

    disk.MOST = disk.CHUNK
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert doctor.main(["--runs", folder, "--seconds", "0.1", "--json"]) == 0
    return printed.getvalue()


def test_two_ranks_are_one_machine_and_its_links(tmp_path, ranks: Ranks):
    first, second = ranks.run(2, found_by_two, str(tmp_path / "runs"))
    assert second == ""
    found = json.loads(first)
    assert [device["rank"] for device in found["devices"]] == [0, 1] and len(found["machines"]) == 1
    assert {each["kind"] for each in found["collectives"]} == {"all-gather", "reduce-scatter"}
    assert all(each["bandwidth"] > 1e5 for each in found["collectives"])
    assert all(device["speed"]["product"] > 1e8 for device in found["devices"])
    assert found["machines"][0]["versions"]["torch"] == torch.__version__ and found["problems"] == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_ends_it_with_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(disk, "MOST", disk.CHUNK)
    monkeypatch.setattr("logtrain.readiness.machine.SHARED_AT_LEAST", 1 << 60)
    with pytest.raises(ValueError, match="doctor: 1 thing is wrong"):
        doctor.main(["--runs", str(tmp_path), "--seconds=0.1"])
    assert "WRONG: /dev/shm: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="seconds = 0"):
        doctor.main(["--seconds", "0"])
    with pytest.raises(ValueError, match="gpu h900: not known"):
        doctor.main(["--gpu", "h900"])
