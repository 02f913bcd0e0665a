"""A disk before a run needs it: how fast it writes and reads, how much room, files and bytes a file it allows."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from shutil import disk_usage
from typing import NamedTuple

from logtrain.core.atomic import naming
from logtrain.core.units import size

CHUNK, MOST = 1 << 24, 1 << 28  # bytes that are written at a time, and in all
FEWEST_FILES = 1000  # that a run may make: checkpoints, exports, records
NAME = "speed"


class Rates(NamedTuple):
    """How fast a disk is, in bytes a second."""

    write: float
    """Written and synchronised (fsync)."""
    read: float
    """Read back, past what memory has kept of it as far as the system lets go of that."""

    def __str__(self) -> str:
        return f"writes {size(self.write)}/s, reads {size(self.read)}/s"


def measure(folder: Path, note: Callable[[str], None] = lambda _: None) -> Rates:
    """Write up to 256 MiB to a file of `folder`, read them back and remove them. Raises OSError where the disk refuses,
    ValueError where it does not give back what it was given.
    """
    total = min(MOST, max(1, disk_usage(folder).free // 8))
    file, chunk = folder / NAME, os.urandom(min(CHUNK, total))
    count = total // len(chunk)
    try:
        with naming(file):
            began = time.perf_counter()
            with open(file, "wb", buffering=0) as stream:
                for number in range(count):
                    note(f"writing to {folder}, {number * len(chunk):,} bytes so far")
                    left = memoryview(chunk)
                    while left:
                        left = left[stream.write(left) :]
                os.fsync(stream.fileno())
            written = time.perf_counter() - began
            found, began = [], time.perf_counter()
            with open(file, "rb", buffering=0) as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while content := stream.read(len(chunk)):
                    found.append(content == chunk)
            read = time.perf_counter() - began
    finally:
        file.unlink(missing_ok=True)
    if found != [True] * count:
        raise ValueError(f"{folder}: gives back other bytes than it was given; do not trust this disk with a run")
    return Rates(count * len(chunk) / max(written, 1e-9), count * len(chunk) / max(read, 1e-9))


def check_limits(folder: Path, largest: int) -> None:
    """Raises ValueError where a file of `largest` bytes, or as many files as a run makes, are more than this process or
    the disk of `folder` may have.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and limit < largest:
        raise ValueError(
            f"{folder}: a file may have {size(limit)} here (ulimit -f), and the run writes one of {size(largest)}; "
            f"raise it: ulimit -f unlimited"
        )
    facts = os.statvfs(folder)
    if facts.f_files and facts.f_favail < FEWEST_FILES:
        raise ValueError(
            f"{folder}: its disk has room for {facts.f_favail:,} more files (inodes); a run needs some "
            f"{FEWEST_FILES:,}: remove small files"
        )
