"""A store on this machine: what is damaged in it is named at once, with the file that it is."""

import time
from pathlib import Path

import pytest

from logtrain.core.store import Store, parse
from logtrain.sharing.versions import pull, push


@pytest.fixture
def store(tmp_path) -> Store:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights.bin").write_text("content")
    store = Store(str(tmp_path / "store"))
    push(store, "logs", tmp_path / "a")
    return store


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda file: file.unlink(), "no such file or folder"),
        (lambda file: file.write_text("conten"), "6 bytes came instead of 7"),
        (lambda file: file.write_text("CONTENT"), "it has not the hash that it was stored under"),
    ],
)
def test_bytes_that_are_gone_cut_or_others(store, tmp_path, change, told):
    """A folder of this machine is asked once: 6 tries take 8 seconds, and fail alike."""
    (file,) = (path for path in Path(store.root, "objects").rglob("*") if path.is_file())
    change(file)
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"{store.root}: weights\.bin\b.*{told}$") as caught:
        pull(store, parse("logs"), tmp_path / "out")
    assert time.monotonic() - began < 4
    assert ":///" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_version_that_is_damaged_is_named(store, tmp_path):
    file = Path(store.root, "versions/logs/000001.json")
    file.write_text(file.read_text().replace('"kind"', "kind"))
    with pytest.raises(ValueError, match=rf"{file}: damaged: .*; remove it to go without the version") as caught:
        pull(store, parse("logs"), tmp_path / "out")
    assert str(caught.value).count("000001.json") == 1
