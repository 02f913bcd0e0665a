"""Tests that measure seconds run while no other worker of pytest-xdist runs any, as those would be measured too.

Every test holds the room, in common, while it runs, and whoever enters passes the door. Who wants the room alone stays
in the door until all others have left, so that nobody enters meanwhile.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

DOOR, ROOM = 0, 1  # the bytes of the file that are locked


@contextlib.contextmanager
def in_turn(is_alone: bool) -> Iterator[None]:
    """The block runs beside those of other workers, or `is_alone`."""
    if not (run := os.environ.get("PYTEST_XDIST_TESTRUNUID")):
        yield
        return
    with Path(tempfile.gettempdir(), f"logtrain-tests-{run}").open("a+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1, DOOR)
        fcntl.lockf(file, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH, 1, ROOM)
        fcntl.lockf(file, fcntl.LOCK_UN, 1, DOOR)
        yield  # the locks go with the file
