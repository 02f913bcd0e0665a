"""Every record says of which run and of which of its files it is, wherever it lies later."""

import hashlib
import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from logtrain.core.origin import check_origin, origin, read_sealed_in, sealed_in, strange
from logtrain.core.run_folder import enter_run_folder
from logtrain.core.untrusted import sealed


@dataclass(frozen=True, kw_only=True)
class Config:
    lr: float = 1e-5
    runs: str = "runs"


def enter(folder: Path, resume: bool = False, **settings) -> str:
    """Begin a run, or go on with it -> its identity."""
    enter_run_folder(folder, Config(**settings), resume, ("runs",)).close()
    return origin(folder, "metrics")["run"]


def test_a_run_keeps_its_identity_and_has_no_other_ones(tmp_path):
    ids = [enter(tmp_path / "a"), enter(tmp_path / "b"), enter(tmp_path / "c", lr=2e-5)]
    assert len(set(ids)) == 3 and all(len(found) == 12 for found in ids)
    assert enter(tmp_path / "a", lr=2e-5) not in ids, "it has not begun: it is another one"
    (tmp_path / "b" / "metrics.jsonl").touch()
    (tmp_path / "b").rename(tmp_path / "moved")
    assert enter(tmp_path / "moved", resume=True, runs="elsewhere") == ids[1]
    shutil.rmtree(tmp_path / "c")
    assert enter(tmp_path / "c", lr=2e-5, runs="others") == ids[2], "the same command in the same place is the same run"


def test_a_run_of_an_older_version_gets_one_when_it_goes_on(tmp_path):
    enter(tmp_path / "a")
    file = tmp_path / "a" / "metrics.jsonl"
    file.touch()
    text = (tmp_path / "a" / "config.toml").read_text()
    rest = text.split("\n", 2)[2]
    (tmp_path / "a" / "config.toml").write_text(
        f"# sha256 of what follows: {hashlib.sha256(rest.encode()).hexdigest()}\n{rest}"
    )
    assert origin(tmp_path / "a", "metrics") == {"file": "metrics"}
    assert len(enter(tmp_path / "a", resume=True)) == 12


def test_any_exchange_of_two_files_is_found(tmp_path):
    for name in ("a", "b"):
        enter(tmp_path / name)
    places = [(tmp_path / name / f"{kind}.json", kind) for name in ("a", "b") for kind in ("export", "adapter")]
    for file, kind in places:
        file.write_bytes(sealed_in(file, kind, {"loss": 1.0}))
        assert read_sealed_in(file, kind) == {"loss": 1.0}
    for (one, kind), (other, _) in itertools.permutations(places, 2):
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        with pytest.raises(ValueError, match=rf"{one}: another file lies in its place: {other.stem} of ") as caught:
            read_sealed_in(one, kind)
        assert "\n" not in str(caught.value)
        assert ("of this run" in str(caught.value)) == (one.parent == other.parent)
        one.write_bytes(kept)


def test_what_an_older_version_wrote_is_taken(tmp_path):
    enter(tmp_path / "a")
    file = tmp_path / "a" / "export.json"
    file.write_bytes(sealed({"loss": 1.0}))
    assert read_sealed_in(file, "export") == {"loss": 1.0}


@pytest.mark.parametrize("found", [{"file": 7}, {"run": []}, {"file": "events", "run": "\x1b[2J"}])
def test_what_others_have_put_there_is_one_line(found):
    wanted = {"file": "events", "run": "0" * 12}
    assert strange(dict(found), wanted)
    with pytest.raises(ValueError, match="lies in its place") as caught:
        check_origin("x", {"a": 1, **found}, wanted)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
