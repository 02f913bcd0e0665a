"""What a folder is and was made from, as its own files say: what is gone, or another one's, is told."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from logtrain.core.checksums import LINEAGE, write_checksums
from logtrain.core.lineage import parent_of
from logtrain.core.origin import origin
from logtrain.core.run_folder import enter_run_folder
from logtrain.core.store import Store
from logtrain.core.untrusted import sealed
from logtrain.sharing.ancestry import Ancestry
from logtrain.sharing.versions import push

NO_LINEAGE = json.dumps({"parents": [], "config": {}})


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = 1


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_a_published_folder_without_the_file_that_says_what_it_is_is_refused(store, tmp_path, name):
    path = folder(tmp_path / "a", **{LINEAGE: NO_LINEAGE})
    (path / name).write_text("{}")
    write_checksums(path)
    (path / name).unlink()
    with pytest.raises(ValueError, match=rf"damaged since it was published: {name} is missing"):
        Ancestry(store).lines(str(path))


def test_a_published_folder_without_checksums_is_told_and_found_all_the_same(store, tmp_path, capsys):
    path = folder(tmp_path / "a", **{LINEAGE: NO_LINEAGE, "weights.bin": "w"})
    write_checksums(path)
    other = folder(tmp_path / "b", **{LINEAGE: json.dumps({"parents": [parent_of("model", path)], "config": {}})})
    push(store, "own", path)
    (path / "checksums.json").unlink()
    lines = f"data {other}", "  model: data hub://own:1"
    assert Ancestry(store).lines(str(other))[1] == lines[1]
    assert Ancestry(Store(str(tmp_path / "empty"))).lines(str(path)) == [f"data {path} (has no checksums.json)"]
    (path / "weights.bin").write_text("x")
    changed = f"  model: data {path} (changed since) (has no checksums.json)"
    assert Ancestry(Store(str(tmp_path / "empty"))).lines(str(other))[1] == changed
    push(store, "other", path)
    assert f"warning: {path}: has no checksums.json" in capsys.readouterr().err


def test_damage_to_any_file_of_a_published_folder_is_not_pushed(store, tmp_path):
    path = folder(tmp_path / "a", **{LINEAGE: NO_LINEAGE, "weights.bin": "w"})
    write_checksums(path)
    (path / "weights.bin").write_text("x")
    with pytest.raises(ValueError, match=r"damaged since it was published: weights\.bin has another checksum"):
        push(store, "own", path)


def test_losses_of_another_export_are_neither_pushed_nor_told(store, tmp_path):
    run = tmp_path / "run"
    enter_run_folder(run, Config(), False, ()).close()
    path = folder(run / "export", **{LINEAGE: NO_LINEAGE})
    losses = {"live_loss": 1.5, "exported_loss": 1.51}
    (run / "export.json").write_bytes(sealed(losses | origin(run, "export")))
    assert push(store, "own", path)[0]["lineage"]["facts"] == losses
    for other in ({"file": "export", "run": "2" * 12}, origin(run, "adapter")):
        (run / "export.json").write_bytes(sealed(losses | other))
        for use in (lambda: push(store, "own", path), lambda: Ancestry(Store(store.root)).lines(str(path))):
            with pytest.raises(ValueError, match=r"export\.json: another file lies in its place"):
                use()
