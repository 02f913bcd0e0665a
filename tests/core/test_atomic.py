"""Files and folders are there whole or not at all: what a failure and a crash leave, and whose place is never taken."""

import ctypes
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from logtrain.core import atomic
from logtrain.core.atomic import MARK, new_folder, write_file


def tree(folder: Path) -> dict[str, str]:
    """The files below a folder with their content; folders by name with a slash."""
    return {
        f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}": "" if path.is_dir() else path.read_text()
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


def older(folder: Path) -> Path:
    """A folder that was written before."""
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "old").write_text("old")
    return folder


OLDER = {"data/": "", "data/sub/": "", "data/sub/old": "old"}
NEW = {"data/": "", "data/new": "new"}

PROGRAM = """
import os, signal, sys
from pathlib import Path
from logtrain.core import atomic

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

{before}
with atomic.new_folder(Path(sys.argv[1]), replace={replace}) as aside:
    (aside / "new").write_text("new")
    {within}
"""


def killed(folder: Path, before: str = "", within: str = "pass", replace: bool = True) -> None:
    """A process that writes the folder and is killed on its way."""
    program = PROGRAM.format(before=before, within=within, replace=replace)
    assert subprocess.run([sys.executable, "-c", program, folder]).returncode == -signal.SIGKILL


# Files


def test_a_file_takes_the_place_of_an_older_one(tmp_path):
    for content in (b"one", b"two"):
        write_file(tmp_path / "x", content)
        assert (tmp_path / "x").read_bytes() == content
    assert tree(tmp_path) == {"x": "two"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_that_fails_leaves_the_older_one(tmp_path, monkeypatch, step):
    write_file(tmp_path / "x", b"one")

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(OSError, match="no space left"):
        write_file(tmp_path / "x", b"two")
    assert tree(tmp_path) == {"x": "one"}


def test_what_lies_aside_of_a_file_is_cleared_and_a_link_not_followed(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / ".x.partial").symlink_to(tmp_path / "thesis")
    write_file(tmp_path / "x", b"one")
    (tmp_path / ".y.partial").write_text("cut sh")
    write_file(tmp_path / "y", b"two")
    assert tree(tmp_path) == {"thesis": "years of work", "x": "one", "y": "two"}
    assert not any(path.is_symlink() for path in tmp_path.iterdir())


# Folders


@pytest.mark.parametrize("replace", [False, True])
def test_new_folder(tmp_path, replace):
    with new_folder(tmp_path / "a" / "data", replace=replace) as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "x").write_text("1")
        assert not (tmp_path / "a" / "data").exists()
    assert tree(tmp_path) == {"a/": "", "a/data/": "", "a/data/sub/": "", "a/data/sub/x": "1"}


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, named, fsync, rename = set(), [], os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.fstat(handle).st_ino) or fsync(handle))
    monkeypatch.setattr(os, "rename", lambda *names: named.append(set(synced)) or rename(*names))
    with new_folder(tmp_path / "data") as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "x").write_text("1")
    inside = {path.stat().st_ino for path in [tmp_path / "data", *(tmp_path / "data").rglob("*")]}
    assert inside <= named[0]
    assert tmp_path.stat().st_ino in synced - named[0]


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(tmp_path, failure):
    with pytest.raises(failure), new_folder(tmp_path / "data") as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "x").write_text("1")
        raise failure
    assert tree(tmp_path) == {}


def test_what_is_there_is_not_touched(tmp_path):
    (tmp_path / "data").mkdir()
    with new_folder(tmp_path / "data") as aside:  # an empty folder is as good as none
        (aside / "x").write_text("1")
    message = "data: not empty; empty it, or choose another name"
    with pytest.raises(ValueError, match=message), new_folder(tmp_path / "data"):
        pytest.fail("not to be entered")
    (tmp_path / "file").write_text("1")
    for replace in (False, True):
        with pytest.raises(ValueError, match="file: not empty"), new_folder(tmp_path / "file", replace=replace):
            pytest.fail("not to be entered")
    assert tree(tmp_path) == {"data/": "", "data/x": "1", "file": "1"}


@pytest.mark.parametrize("kind", ["folder", "file", "link to a folder", "link to nothing", "folder with a link"])
def test_what_lies_aside_and_is_not_ours_is_refused_and_not_touched(tmp_path, kind):
    foreign = tmp_path / ".data.partial"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis").write_text("years of work")
    if kind.startswith("folder"):
        (tmp_path / "elsewhere").rename(foreign)
        if kind == "folder with a link":  # that is called as a mark is
            (foreign / MARK).symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        foreign.write_text("years of work")
    else:
        foreign.symlink_to(tmp_path / ("elsewhere" if kind == "link to a folder" else "nowhere"))
    before = tree(tmp_path), foreign.is_symlink()
    message = r"\.data\.partial: in the way, and not left by logtrain; move it elsewhere"
    with pytest.raises(ValueError, match=message), new_folder(tmp_path / "data"):
        pytest.fail("not to be entered")
    assert (tree(tmp_path), foreign.is_symlink()) == before


def test_one_writer_at_a_time_and_the_dead_hold_nothing(tmp_path):
    program = PROGRAM.format(before="", within="print('ready', flush=True); sys.stdin.read()", replace=False)
    command = [sys.executable, "-c", program, tmp_path / "data"]
    message = "data: another process is writing it; wait for that one, or choose another name"
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        try:
            with pytest.raises(ValueError, match=message), new_folder(tmp_path / "data"):
                pytest.fail("not to be entered")
        finally:
            process.kill()
    assert tree(tmp_path) == {".data.partial/": "", ".data.partial/new": "new", f".data.partial/{MARK}": ""}
    with new_folder(tmp_path / "data") as aside:
        (aside / "x").write_text("1")
    assert tree(tmp_path) == {"data/": "", "data/x": "1"}


def test_a_writer_that_was_killed_before_it_set_its_mark_is_cleared(tmp_path):
    (tmp_path / ".data.partial").mkdir()
    with new_folder(tmp_path / "data") as aside:
        (aside / "new").write_text("new")
    assert tree(tmp_path) == NEW


# A folder in the place of an older one


@pytest.fixture(params=["exchanged", "renamed twice"])
def way(request, monkeypatch) -> str:
    """How the new folder takes the place: in one step, and where the kernel or the file system cannot do that."""
    if request.param == "renamed twice":
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    return request.param


def test_the_older_folder_is_there_until_the_new_one_is(tmp_path, way):
    data = older(tmp_path / "data")
    with new_folder(data, replace=True) as aside:
        (aside / "new").write_text("new")
        assert tree(data) == tree(older(tmp_path / "same"))
    assert tree(data) == {"new": "new"}
    assert {path.name for path in tmp_path.iterdir()} == {"data", "same"}


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_older_folder(tmp_path, way, failure):
    with pytest.raises(failure), new_folder(older(tmp_path / "data"), replace=True) as aside:
        (aside / "new").write_text("new")
        raise failure
    assert tree(tmp_path) == OLDER


def test_a_rename_that_fails_leaves_the_older_folder(tmp_path, monkeypatch):
    """Between the two renames of a file system that cannot exchange names."""
    monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    rename = os.rename

    def fails_for_the_new_one(source: Path, target: Path) -> None:
        if source == tmp_path / ".data.partial":
            raise OSError("input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_for_the_new_one)
    with pytest.raises(OSError, match="input/output error"), new_folder(older(tmp_path / "data"), replace=True):
        pass
    assert tree(tmp_path) == OLDER


@pytest.mark.parametrize(
    ("number", "outcome"),
    [(errno.EINVAL, False), (errno.ENOSYS, False), (errno.ENOTSUP, False), (errno.EIO, OSError), (None, False)],
)
def test_what_cannot_exchange_names_says_so(tmp_path, monkeypatch, number, outcome):
    """A file system (EINVAL), a kernel (ENOSYS) or a C library (None) without it; other errors are errors."""

    class Library:
        def __init__(self, *_, **__):
            if number is not None:
                self.renameat2 = lambda *_: ctypes.set_errno(number) or -1

    monkeypatch.setattr(ctypes, "CDLL", Library)
    if outcome is OSError:
        with pytest.raises(OSError, match="Input/output error"):
            atomic.exchange(tmp_path / "a", tmp_path / "b")
    else:
        assert atomic.exchange(tmp_path / "a", tmp_path / "b") is outcome


def test_a_link_gives_way_and_not_what_it_points_to(tmp_path):
    older(tmp_path / "elsewhere")
    (tmp_path / "data").symlink_to(tmp_path / "elsewhere")
    with new_folder(tmp_path / "data", replace=True) as aside:
        (aside / "new").write_text("new")
    assert not (tmp_path / "data").is_symlink()
    assert tree(tmp_path / "data") == {"new": "new"}
    assert tree(tmp_path / "elsewhere") == {"sub/": "", "sub/old": "old"}
    assert {path.name for path in tmp_path.iterdir()} == {"data", "elsewhere"}


NO_EXCHANGE = "atomic.exchange = lambda *_: False\n"
CRASHES = {  # where a process is killed: what it does before, within the block, and which folder is there then
    "in the block": ("", "die()", OLDER),
    "before the exchange": ("atomic.exchange = die", "pass", OLDER),
    "after the exchange": ("atomic.discard = die", "pass", NEW),
    "between two renames": (
        NO_EXCHANGE + "rename = os.rename\nos.rename = lambda a, b: die() if b.name == 'data' else rename(a, b)",
        "pass",
        OLDER,
    ),
    "after two renames": (NO_EXCHANGE + "atomic.remove = die", "pass", NEW),
}


@pytest.mark.parametrize("moment", CRASHES)
def test_what_a_crash_leaves_is_cleared_by_the_next_writer(tmp_path, moment):
    """The folder that should be there is, at the latest when the next writer begins; and nothing else when it ends."""
    before, within, expected = CRASHES[moment]
    killed(older(tmp_path / "data"), before, within)
    if moment != "between two renames":  # where for that moment none has the name
        assert visible(tmp_path) == expected
    with pytest.raises(ValueError, match="not empty"), new_folder(tmp_path / "data"):
        pytest.fail("not to be entered")
    assert visible(tmp_path) == expected
    with new_folder(tmp_path / "data", replace=True) as aside:
        (aside / "newer").write_text("newer")
    assert tree(tmp_path) == {"data/": "", "data/newer": "newer"}


def visible(folder: Path) -> dict[str, str]:
    """Without names that begin with a dot."""
    return {name: text for name, text in tree(folder).items() if not any(p[0] == "." for p in Path(name).parts)}


def test_a_full_disk_in_a_new_folder_is_named(tmp_path):
    """A file that is open has no name in what the system says."""
    with pytest.raises(OSError, match=r"No space left on device: '.*/a'"), new_folder(tmp_path / "a"):
        Path("/dev/full").write_text("a")
    assert not list(tmp_path.iterdir())
