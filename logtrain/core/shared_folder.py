"""A folder on a disk that all nodes share, as a node sees it: over NFS for up to a minute what was there before.

A node keeps what it has been told of names and sizes, also that a name was not there. So no rank decides from one look
at what another has written: rank 0 says what there is, and each rank waits until its own node sees it.
"""

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PATIENCE = 90.0  # seconds; Linux keeps attributes of folders for 60 at most (nfs(5): acdirmax)


def listing(folder: Path) -> dict[str, int]:
    """The files of a folder with their sizes, as this node sees them."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


def wait_until_seen(folder: Path, files: Mapping[str, int], note: Callable[[str], None]) -> None:
    """Until this node sees the folder, and in it these files with these sizes. `note` is told now and then. Raises
    ValueError where it has not by PATIENCE.
    """
    end = time.monotonic() + PATIENCE
    while missing := unseen(folder, files):
        if time.monotonic() > end:
            where = f"not there on {platform.node()}, {PATIENCE:g} s after it was written"
            raise ValueError(f"{missing}: {where}; the folder must lie on a disk that all nodes share")
        note(f"waiting for {missing}")
        time.sleep(0.2)


def unseen(folder: Path, files: Mapping[str, int]) -> Path | None:
    """The folder, or the first of the files, that this node does not see yet."""
    try:
        if not folder.is_dir():
            return folder
        return next((folder / name for name, size in files.items() if (folder / name).stat().st_size != size), None)
    except OSError:  # not there, or (ESTALE) another than the one of which this node knows
        return folder
