"""A node's ranks meet in one folder, which goes with the process that made it, however that one ends."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from logtrain.core.node_folder import is_on_network, node_folder, own_prefix

PROGRAM = """
import os, sys
from types import SimpleNamespace
from logtrain.core.node_folder import node_folder

world = SimpleNamespace(rank=0, local_rank=0, from_main=lambda value: value)
folder = node_folder(world)
(folder / "epoch-0").mkdir()
(folder / "epoch-0" / "array.npy").write_text("")
print(folder, flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def two_on_the_node(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def rank(number: int, local: int, name: str = "abc") -> SimpleNamespace:
    return SimpleNamespace(rank=number, local_rank=local, from_main=lambda _: name)


def start(count: int) -> list[tuple[subprocess.Popen, Path]]:
    """Processes with a node folder each; they end when they are told to."""
    pipes, command = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}, [sys.executable, "-c", PROGRAM]
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(count)]
    return [(process, Path(process.stdout.readline().strip())) for process in processes]


def test_a_rank_alone_on_its_node_needs_none(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert node_folder(rank(5, 0)) is None
    assert not os.listdir(tmp_path)


def test_ranks_of_a_node_agree_and_nodes_differ(tmp_path):
    """Of two nodes that share their folder for temporary files, too."""
    assert node_folder(rank(3, 1)) == node_folder(rank(2, 0)) == tmp_path / f"{own_prefix()}abc-2"
    assert node_folder(rank(1, 1)) == tmp_path / f"{own_prefix()}abc-0"
    assert os.listdir(tmp_path) == [f"{own_prefix()}abc-2"]  # a node's first rank makes it
    assert (tmp_path / f"{own_prefix()}abc-2").stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_it_goes_with_its_process_and_what_a_killed_one_left_with_the_next_start(tmp_path):
    (ended, _), (killed, left), (living, kept) = start(3)
    ended.communicate("\n", timeout=60)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert {folder.name for folder in tmp_path.iterdir()} == {left.name, kept.name}
    other = tmp_path / "precious"
    other.mkdir()
    (tmp_path / f"{own_prefix()}link").symlink_to(other)
    mine = node_folder(rank(0, 0))
    assert {path.name for path in tmp_path.iterdir()} == {kept.name, mine.name, "precious", f"{own_prefix()}link"}
    assert (kept / "epoch-0" / "array.npy").exists()
    living.communicate("\n", timeout=60)
    assert not kept.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder another user's")
def test_another_users_folder_is_left_alone(tmp_path):
    theirs = tmp_path / f"{own_prefix()}theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    node_folder(rank(0, 0))
    assert theirs.exists()


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/proc")  # which nobody can write, not even root
    message = r"^/proc: [A-Z][a-z ]+; the ranks of a node share .*: set TMPDIR to another folder$"
    with pytest.raises(ValueError, match=message):
        node_folder(rank(0, 0))
    assert node_folder(rank(1, 1)).parent == Path("/proc")  # the others do not touch it


MOUNTS = r"""
/dev/vda1 / ext4 rw 0 0
proc /proc proc rw 0 0
filer:/home /home nfs4 rw 0 0
/dev/vdb /home/local xfs rw 0 0
filer:/d /mnt/with\040space lustre rw 0 0
filer:/d /mnt/données beegfs rw 0 0
tmpfs /run tmpfs rw 0 0
s3 /run fuse.s3fs rw 0 0
/dev/vdc /covered ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data", False),
        ("/home/me/data", True),
        ("/homes/me", False),
        ("/home/local/data", False),
        ("/mnt/with space/data", True),
        ("/mnt/données/data", True),
        ("/mnt/data", False),
        ("/run/data", True),  # what was mounted last is what is seen
        ("/covered", False),
    ],
)
def test_whether_a_path_is_on_a_network(tmp_path, path, expected):
    (tmp_path / "mounts").write_text(MOUNTS.lstrip())
    assert is_on_network(path, tmp_path / "mounts") == expected
