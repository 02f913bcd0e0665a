"""What a container or a batch system leaves this process of its machine: the limits of its control groups (cgroups)."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

OWN, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Files of a group that hold the limit of its memory and what it has, and what of that is files that are let go: cgroup
# versions 2 and 1, https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def groups(controller: str) -> Iterator[Path]:
    """The folders of the groups that this process is in and that may limit it, the innermost first: each has its own
    limit, and the lowest holds.
    """
    lines = OWN.read_text().splitlines() if OWN.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controller in controllers.split(",") or not controllers:
            base = ROOT / controller if controllers else ROOT
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                if (folder := base / str(group).lstrip("/")).is_dir():  # a container sees its own as the root
                    yield folder


def memory() -> tuple[int, int]:
    """Bytes of memory that this process may have in all, and that are to be had now."""
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for group in groups("memory"):
        for limit, used, cached in MEMORY:
            with contextlib.suppress(OSError, ValueError, KeyError):  # not of this version, or "max"
                most = int((group / limit).read_text())
                facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                taken = int((group / used).read_text()) - int(facts[cached])
                total, free = min(total, most), min(free, max(0, most - taken))
    return total, free


def cores() -> tuple[int, float]:
    """The processors that this process may run on, and of how many of them it gets the time."""
    number = len(os.sched_getaffinity(0))
    shares = [float(number)]
    for group in groups("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # version 2, or "max"
            quota, period = (group / "cpu.max").read_text().split()
            shares.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            shares += [int(quota) / int(period)] if int(quota) > 0 else []
    return number, min(shares)
