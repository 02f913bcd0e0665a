"""A machine of a job, as its first rank sees it: processors, memory, disk, names, what it shares with the others."""

import os
import platform
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from logtrain.core.entry import words_of
from logtrain.core.units import size
from logtrain.core.world import World
from logtrain.readiness import container, disk, machine, options
from logtrain.readiness.gpus import driver_version
from logtrain.readiness.stages import gathered

SLOW_NAME = 1.0  # seconds of a look-up of a name
PATIENCE = 10.0  # seconds until another machine sees a new file
SKEW = 1.0  # seconds between the clocks of two machines: leases and times of files are compared


def examine(folder: Path, gpus: int, ranks: int, alone: bool) -> dict[str, Any]:
    """The facts of this machine, with a line for each thing that is wrong. `folder`: where runs go. `gpus` and `ranks`:
    of this machine. `alone`: whether it is the only one.
    """
    problems: list[str] = []
    (cores, share), (total, free) = container.cores(), container.memory()
    facts: dict[str, Any] = {
        "node": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": cores,
        "share_of_cores": share,
        "memory_bytes": total,
        "free_bytes": free,
        "driver": driver_version(),
        "versions": options.versions(),
        "missing": options.missing(gpus > 0),
        "problems": problems,
        "told": [],
    }
    for check in (
        lambda: machine.check_shared_memory(gpus),
        lambda: machine.check_temporary(ranks),
        lambda: f"{folder}: {disk_of(folder)}",
        lambda: check_name(platform.node(), alone),
    ):
        try:
            facts["told"].append(check())
        except (ValueError, OSError) as error:
            problems.append(words_of(error))
    return facts


def disk_of(folder: Path) -> disk.Rates:
    """How fast the disk of a folder, or of the one that it would be made in, is. Raises ValueError where a run could
    not be written there.
    """
    with scratch_in(folder) as scratch:
        return disk.measure(scratch)


@contextmanager
def scratch_in(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, or in the one that it would be made in, which is removed. Raises ValueError."""
    place = existing(folder)
    try:
        made = tempfile.TemporaryDirectory(prefix=".doctor-", dir=place)
    except OSError as error:
        raise ValueError(f"{place}: {error.strerror}; runs are written there: choose another --runs") from None
    with made as name:
        yield Path(name)


def existing(folder: Path) -> Path:
    """The folder, or the one above it that there is. Raises ValueError where something else is in its place."""
    folder = folder.absolute()
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder}: is no folder; choose another --runs")
    return folder if folder.is_dir() or folder == folder.parent else existing(folder.parent)


def check_name(name: str, alone: bool) -> str:
    """The address of this machine's own name, in words. Raises ValueError where other machines could not use it."""
    began = time.monotonic()
    try:
        address = socket.gethostbyname(name)
    except (OSError, UnicodeError) as error:  # the latter: no name that there can be
        if alone:
            return f"{name} has no address, which one machine does not need"
        raise ValueError(f"{name}: its name has no address ({error}); add it to DNS or /etc/hosts") from None
    taken = time.monotonic() - began
    if taken > SLOW_NAME:
        raise ValueError(f"{name}: took {taken:.1f} s to look up; see to DNS, or add it to /etc/hosts")
    return f"{name} is {address}"


def check_shared(world: World, folder: Path, machines: int) -> list[str]:
    """What is wrong with the folder and the clocks that machines share, on rank 0. Every rank calls this."""
    if machines == 1:
        return []
    with ExitStack() as stack:
        place = ""
        if world.is_main:
            with suppress(ValueError):  # the examination of the disk has said so
                place = str(stack.enter_context(scratch_in(folder)))
        place, now = world.from_main((place, time.time()))
        if not place:
            return []
        skew, problem = abs(time.time() - now), ""
        if world.local_rank == 0:
            end = time.monotonic() + PATIENCE
            while not Path(place).is_dir() and time.monotonic() < end:
                time.sleep(0.1)
            if not Path(place).is_dir():
                problem = (
                    f"{platform.node()} does not see {folder} as rank 0 does; runs must lie on a disk that all share"
                )
            elif skew > SKEW:
                problem = f"{platform.node()}: its clock is {skew:.1f} s off rank 0's; set it by NTP"
        return [text for text in gathered(world, problem) if text]


def told(facts: dict[str, Any]) -> list[str]:
    """The facts of a machine, as lines."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    driver = f"driver {facts['driver']}, " if facts["driver"] else ""
    share = f" (the time of {facts['share_of_cores']:.3g})" if facts["share_of_cores"] < facts["cores"] else ""
    cores = "1 core" if facts["cores"] == 1 else f"{facts['cores']} cores"
    return [
        f"{facts['node']}: {cores}{share}, {size(facts['memory_bytes'])} memory, "
        f"{size(facts['free_bytes'])} of it free; {facts['system']}",
        f"  {driver}{versions}",
        *(f"  {line}" for line in facts["told"]),
    ]
