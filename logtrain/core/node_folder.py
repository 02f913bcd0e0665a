"""A folder that the ranks of one node share: for what one of them computes and all read."""

import atexit
import contextlib
import os
import platform
import re
import secrets
import shutil
import tempfile
from pathlib import Path

from logtrain.core.lock import Held, Lock
from logtrain.core.world import World

PREFIX, OWNER = "logtrain-node-", "owner"
OWNED: list[Lock] = []
"""Held until the process ends."""
NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "9p",
    "afs",
    "pvfs2",
    "wekafs",
}
"""Kinds of file systems whose files other machines see, too; those of FUSE are taken for such as well."""


def node_folder(world: World) -> Path | None:
    """A new folder of this node's ranks in the folder for temporary files (TMPDIR), which goes with the process of its
    first rank; None where a rank is alone on its node. Every rank calls it. The first rank makes it and may come later
    than the others, who wait for what they look for in it.

    What a killed run has left there is removed. Raises ValueError where it cannot be made.
    """
    name = world.from_main(secrets.token_hex(16))  # which nobody else can guess or meet
    if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) == 1:
        return None
    folder = Path(tempfile.gettempdir()) / f"{own_prefix()}{name}-{world.rank - world.local_rank}"
    if world.local_rank == 0:
        remove_left_behind(folder.parent)
        try:
            make_owned(folder)
        except OSError as error:
            raise ValueError(
                f"{folder.parent}: {error.strerror}; the ranks of a node share there what one of them computes: "
                f"set TMPDIR to another folder"
            ) from error
    return folder


def own_prefix() -> str:
    """How the names of this host's folders begin: on a disk that hosts share, a lock may bind one host alone."""
    return f"{PREFIX}{re.sub('[^A-Za-z0-9.-]', '_', platform.node())}-"


def make_owned(folder: Path) -> None:
    """Make a folder with a file that is locked as long as this process lives, at whose end it is removed."""
    aside = Path(tempfile.mkdtemp(prefix="logtrain-", dir=folder.parent))
    OWNED.append(Lock(aside / OWNER))
    os.rename(aside, folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def remove_left_behind(parent: Path) -> None:
    """Remove folders of `make_owned` whose process has ended without removing them."""
    for folder in parent.glob(f"{own_prefix()}*"):
        with contextlib.suppress(OSError, Held):  # another user's; its process lives; another run removes it just now
            if not folder.is_symlink() and folder.stat().st_uid == os.getuid():
                with Lock(folder / OWNER):
                    shutil.rmtree(folder)


def is_on_network(path: str | Path, mounts: str | Path = "/proc/self/mounts") -> bool:
    """Whether a path lies on a file system that other machines share. `mounts`: the table of them, as Linux has it."""
    path = os.path.realpath(path)
    kind, longest = "", -1
    for line in Path(mounts).read_text().splitlines():
        _, point, fs_type, *_ = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda escaped: chr(int(escaped[1], 8)), point)  # a space is \040
        if os.path.commonpath([point, path]) == point and len(point) >= longest:  # of the same point the last counts
            kind, longest = fs_type, len(point)
    return kind in NETWORK or kind.startswith("fuse")
