"""A lock that one process holds until it gives it back or ends, however it ends.

It is the kernel's (flock). On a file system that has none, as some of clusters have, it is a lease: a file NAME.lease
that names host and process. The lease of a process of this machine that has ended is taken over; whether a process of
another machine lives cannot be seen from here, so its lease stands until somebody removes it.
"""

import atexit
import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
STARTED = 19  # of /proc/PID/stat, counted behind the name: when the process began, in ticks since the machine did


class Held(Exception):
    """Another process holds the lock. Its text says which."""


class Lock:
    """Held from its making on; as a context manager, until the block ends. `file` comes to be and stays."""

    def __init__(self, file: Path, lease: Path | None = None):
        """`lease`: where the lease would be, if not beside `file`. Raises Held, and OSError."""
        self.stream, self.lease = open(file, "ab"), None  # noqa: SIM115 (closed by close())
        try:
            if not flock(self.stream, wait=False):
                self.lease = Lease(lease or file.with_name(f"{file.name}.lease"))
        except BaseException:
            self.stream.close()
            raise

    def close(self) -> None:
        """Give the lock back."""
        if self.lease:
            self.lease.close()
        self.stream.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def flock(stream: IO, wait: bool) -> bool:
    """Lock an open file until it is closed; False where its file system cannot. Raises Held unless it may `wait`."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise Held("another process") from None
    except OSError as error:
        if error.errno in NO_FLOCK:
            return False
        raise
    return True


class Lease:
    """A file that is there as long as this process holds a lock."""

    def __init__(self, file: Path):
        """Raises Held."""
        self.file, self.holder = file, this_process()
        while not self.create():
            with alone_on_this_machine(file):  # so that what is removed is what was read
                if is_left(file):
                    file.unlink()
        logging.getLogger(__name__).warning("%s: its file system has no locks (flock); this file is one instead", file)
        atexit.register(self.close)

    def create(self) -> bool:
        """Make the file; False where there is one."""
        try:
            with open(self.file, "x") as stream:
                json.dump(self.holder, stream)
        except FileExistsError:
            return False
        return True

    def close(self) -> None:
        """Remove the file if it is still this process's own."""
        atexit.unregister(self.close)
        with contextlib.suppress(OSError, ValueError):
            if os.getpid() == self.holder["pid"] and json.loads(self.file.read_bytes()) == self.holder:
                self.file.unlink()


def this_process() -> dict[str, str | int]:
    """Who holds a lease: what tells this process from every other, and what its user knows it by."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "started": started(os.getpid()),
        "machine": machine(),
    }


def started(pid: int) -> int:
    """When a process of this machine began; 0 where there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[STARTED])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def machine() -> str:
    """The running system, and within it the part (of a container) whose processes this one sees."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def is_left(lease: Path) -> bool:
    """Whether a process that is known to have ended left a lease; False where there is none. Raises Held else."""
    try:
        holder = json.loads(lease.read_bytes())
        has_ended = holder["machine"] == machine() and started(holder["pid"]) != holder["started"]
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except FileNotFoundError:
        return False  # and by now there may be another's
    except (ValueError, KeyError, TypeError):
        has_ended, who = False, "an unknown process"
    if not has_ended:
        raise Held(f"{who} (if that one has ended, remove {lease})")
    return True


@contextlib.contextmanager
def alone_on_this_machine(file: Path) -> Iterator[None]:
    """No other process of this machine is in such a block for this file. Raises Held where one is."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(file))).hexdigest()
    with socket.socket(socket.AF_UNIX) as guard:
        try:
            guard.bind(f"\0logtrain-{name}")  # a name of the kernel's, not a file; it goes with the process
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise Held(f"another process, which is just taking {file} over") from None
        yield
