"""The folder of a run holds one run, whatever of it is lost."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from logtrain.core import lock
from logtrain.core.run_folder import enter_run_folder, read_run_config


@dataclass(frozen=True, kw_only=True)
class Config:
    lr: float = 1e-5
    runs: str = "runs"


def enter(folder: Path, resume: bool = False, **settings) -> None:
    enter_run_folder(folder, Config(**settings), resume, ("runs",)).close()


@pytest.fixture
def run(tmp_path) -> Path:
    enter(tmp_path / "run")
    return tmp_path / "run"


def test_what_was_only_tried_may_be_tried_anew(run):
    (run / "checkpoints").mkdir()
    enter(run, lr=2e-5)
    assert read_run_config(run, Config) == Config(lr=2e-5)


def test_of_a_start_that_was_refused_nothing_stays(tmp_path):
    """Neither its folder nor those that were made for it; what was there, or has begun, stays."""
    (tmp_path / "own").mkdir()
    for folder in (tmp_path / "runs" / "run", tmp_path / "own"):
        with (
            pytest.raises(ValueError, match="does not fit"),
            enter_run_folder(folder, Config(), False, ("runs",)),
        ):
            assert read_run_config(folder, Config) == Config()
            (folder / "checkpoints").mkdir()
            raise ValueError("does not fit")
    assert list(tmp_path.rglob("*")) == [tmp_path / "own"]
    with pytest.raises(ValueError, match="full"), enter_run_folder(tmp_path / "own", Config(), False, ()) as entered:
        (entered.folder / "metrics.jsonl").touch()
        raise ValueError("full")
    assert read_run_config(tmp_path / "own", Config) == Config() and (tmp_path / "own" / "metrics.jsonl").exists()


def test_who_waited_for_a_folder_that_is_gone_does_not_hold_it(tmp_path, monkeypatch):
    """A process that has opened the lock of a start before that was refused: what it locks has no name any more."""
    flock = lock.flock

    def after_the_other(stream, wait):
        (tmp_path / "run" / ".lock").unlink()
        return flock(stream, wait)

    monkeypatch.setattr(lock, "flock", after_the_other)
    with pytest.raises(ValueError, match="in use by another process, which has just left it"):
        enter(tmp_path / "run")


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints/step-000001/checkpoint.json", "export/config.json"])
def test_anything_in_it_makes_a_folder_a_run(run, left):
    """Whatever else is lost: no run starts over it, and none goes on in it with other settings."""
    (run / left).parent.mkdir(parents=True, exist_ok=True)
    (run / left).touch()
    before = (run / "config.toml").read_bytes()
    with pytest.raises(ValueError, match="holds a run already"):
        enter(run)
    with pytest.raises(ValueError, match=r"started with lr = 1e-05, now it is 2e-05"):
        enter(run, resume=True, lr=2e-5)
    assert (run / "config.toml").read_bytes() == before
    enter(run, resume=True, runs="elsewhere")
    assert read_run_config(run, Config) == Config(runs="elsewhere")


def test_a_config_that_has_changed_is_not_gone_on_with(run):
    (run / "metrics.jsonl").touch()
    file = run / "config.toml"
    kept = file.read_bytes()
    for position in range(len(kept)):
        changed = bytearray(kept)
        changed[position] ^= 1
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=r"config\.toml: has changed since the run was started"):
            enter(run, resume=True)
    for damaged in (b"", kept[:-1], kept[: len(kept) // 2], b"\0" * len(kept)):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"config\.toml: has changed since the run was started"):
            read_run_config(run, Config)
    file.unlink()
    with pytest.raises(ValueError, match=r"exists and is not a run \(no config.toml\)"):
        enter(run, resume=True)
