"""One process at a time holds a lock, with the kernel's locks and without; one that has ended holds none."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from logtrain.core import atomic, lock
from logtrain.core.lock import Held, Lock
from logtrain.core.run_folder import enter_run_folder

PROGRAM = """
import errno, fcntl, os, signal, sys
from pathlib import Path
from logtrain.core.lock import Held, Lock

def flock(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

if sys.argv[2] == "lease":
    fcntl.flock = flock
try:
    lock = Lock(Path(sys.argv[1]))
except Held as held:
    sys.exit(str(held))
print(os.getpid())
{then}
"""


def another(file: Path, way: str, then: str = "") -> subprocess.CompletedProcess:
    """What a process says that takes the lock, and `then` does something."""
    command = [sys.executable, "-c", PROGRAM.format(then=then), file, way]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture(params=["flock", "lease"])
def way(request, monkeypatch) -> str:
    """With the kernel's locks, and on a file system that has none."""
    if request.param == "lease":
        request.getfixturevalue("no_flock")
    return request.param


@pytest.fixture
def no_flock(monkeypatch) -> None:
    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", missing)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "run.lock"


def lease_of(file: Path) -> Path:
    return file.with_name("run.lock.lease")


def test_one_process_holds_it_until_it_gives_it_back(file, way):
    with Lock(file):
        found = another(file, way)
        assert found.returncode == 1
        if way == "flock":
            assert found.stderr == "another process\n"
        else:
            assert f"process {os.getpid()} on {socket.gethostname()} since 20" in found.stderr
            assert f"(if that one has ended, remove {lease_of(file)})" in found.stderr
        with pytest.raises(Held):
            Lock(file)
    assert os.listdir(file.parent) == [file.name]
    assert another(file, way).returncode == 0


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_process_that_has_ended_holds_none(file, way, end):
    found = another(file, way, end)
    assert found.returncode == {"": 0, "sys.exit(3)": 3}.get(end, -signal.SIGKILL)
    is_left = way == "lease" and "SIGKILL" in end
    assert lease_of(file).exists() == is_left
    with Lock(file):
        if way == "lease":
            assert json.loads(lease_of(file).read_bytes())["pid"] == os.getpid() != int(found.stdout)


def test_which_file_stands_for_the_lock_is_told(file, no_flock, caplog):
    Lock(file).close()
    assert caplog.messages == [f"{lease_of(file)}: its file system has no locks (flock); this file is one instead"]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOLCK, errno.EIO])
def test_other_errors_of_the_file_system_are_errors(file, monkeypatch, number):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", fails)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            Lock(file)
    else:
        with Lock(file):
            assert lease_of(file).exists()


@pytest.mark.parametrize(
    ("changes", "is_taken_over"),
    [
        ({"started": 1}, True),  # its process id has gone to this process since
        ({"pid": 2**30, "started": 1}, True),  # no process has such an id
        ({}, False),
        ({"machine": "another"}, False),
        ({"machine": "another", "pid": 2**30}, False),
    ],
)
def test_a_lease_is_taken_over_when_its_process_has_ended_for_certain(file, no_flock, changes, is_taken_over):
    left = json.dumps(lock.this_process() | {"host": "node7"} | changes)
    lease_of(file).write_text(left)
    if is_taken_over:
        Lock(file).close()
        assert not lease_of(file).exists()
    else:
        with pytest.raises(Held, match=r"remove .*run\.lock\.lease"):
            Lock(file)
        assert lease_of(file).read_text() == left
        lease_of(file).unlink()
        Lock(file).close()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\0"])
def test_a_lease_that_cannot_be_read_stands(file, no_flock, content):
    lease_of(file).write_bytes(content)
    with pytest.raises(Held, match=r"an unknown process \(if that one has ended, remove .*run\.lock\.lease\)"):
        Lock(file)
    assert lease_of(file).read_bytes() == content


def test_a_lease_that_was_given_to_another_by_hand_is_left_to_it(file, no_flock):
    with Lock(file):
        others = json.dumps(lock.this_process() | {"machine": "another"})
        lease_of(file).write_text(others)
    assert lease_of(file).read_text() == others


def test_of_many_that_take_over_at_once_one_succeeds(file, no_flock):
    """Without the guard, some remove the lease that another has just made."""
    for _ in range(40):
        lease_of(file).write_text(json.dumps(lock.this_process() | {"started": 1}))
        barrier, taken = threading.Barrier(8), []

        def take(barrier=barrier, taken=taken) -> None:
            barrier.wait()
            with contextlib.suppress(Held):
                taken.append(Lock(file))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        taken[0].close()


def test_a_lease_made_just_after_an_older_one_was_removed_stands(file, no_flock, monkeypatch):
    """Nothing is removed but what was read."""
    lease_of(file).write_text(json.dumps(lock.this_process() | {"started": 1}))
    others, original = json.dumps(lock.this_process()), lock.is_left

    def is_left(lease: Path) -> bool:
        monkeypatch.setattr(lock, "is_left", original)
        lease.unlink()  # another process takes over: it removes the lease, this one finds none, and then there is one
        found = original(lease)
        lease.write_text(others)
        return found

    monkeypatch.setattr(lock, "is_left", is_left)
    with pytest.raises(Held):
        Lock(file)
    assert lease_of(file).read_text() == others


@dataclass(frozen=True)
class Config:
    lr: float = 1e-5


def test_a_run_and_a_folder_that_is_written_are_locked_without_flock_too(tmp_path, no_flock):
    run = tmp_path / "run"
    with enter_run_folder(run, Config(), False, ()):
        with pytest.raises(ValueError, match=rf"run: in use by process {os.getpid()} on .*; wait for it or choose"):
            enter_run_folder(run, Config(), False, ())
        assert sorted(os.listdir(run)) == [".lock", ".lock.lease", "config.toml"]
    assert sorted(os.listdir(run)) == [".lock", "config.toml"]
    (run / "metrics.jsonl").touch()
    for _ in range(2):  # the lock is given back
        with pytest.raises(ValueError, match="was started with lr"):
            enter_run_folder(run, Config(lr=1.0), True, ())
    for content in ("first", "second"):
        with atomic.new_folder(tmp_path / "data", replace=True) as aside:
            (aside / "new").write_text(content)
            with (
                pytest.raises(ValueError, match=rf"data: process {os.getpid()} on .* is writing it; wait"),
                atomic.new_folder(tmp_path / "data", replace=True),
            ):
                pass
        assert (tmp_path / "data" / "new").read_text() == content
        assert sorted(os.listdir(tmp_path)) == ["data", "run"]
        assert os.listdir(tmp_path / "data") == ["new"]
