"""A thread of each machine that notes once a second what the machine does. It takes no part in any step, and nothing
that goes wrong in it stops a run.

    system.jsonl            of rank 0's machine
    system-rank-00008.jsonl of another, by the first of its ranks; its events are in events-rank-00008.jsonl
"""

import contextlib
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from logtrain.core.origin import origin
from logtrain.core.sealed_lines import add, adding
from logtrain.observe.health import Event
from logtrain.observe.sensors import USUAL, GpuSensors, HostSensors

EVERY = 1.0  # seconds
WRITE_EVERY = 10  # samples after which what else is to be written is


class Monitor:
    """The thread of this machine: begins with `start`, ends with `close`."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        *,
        enabled: bool,
        say: Callable[[Event], None] | None = None,
        also: Callable[[], None] = lambda: None,
        uuids: Sequence[str] = (),
    ):
        """`rank`: the first of this machine's. `enabled`: whether this process watches the machine. `say`: what is done
        with an event; None writes it to a file of this machine. `also`: called every 10 seconds. `uuids`: of the GPUs;
        none: all.
        """
        self.enabled, self.also, self.uuids = enabled, also, uuids
        of_rank = f"-rank-{rank:05d}" if rank else ""
        self.file, self.events = folder / f"system{of_rank}.jsonl", folder / f"events{of_rank}.jsonl"
        self.say = say or self.write_event
        self.step = 0  # that the run is at, for the events
        self.last: dict[str, Any] = {}
        self.said: set[str] = set()
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="monitor", daemon=True)

    def start(self) -> "Monitor":
        """Begin to watch; -> the monitor."""
        if self.enabled:
            with contextlib.suppress(OSError, ValueError):  # as in the thread
                adding(self.file).close()  # from the first moment on, so that one which is gone later is missed
            self.thread.start()
        return self

    def close(self) -> None:
        """End the thread."""
        self.closing.set()
        if self.thread.is_alive():
            self.thread.join(5)

    def watch(self) -> None:
        """The work of the thread."""
        with contextlib.suppress(OSError, ValueError):  # a full disk, no regular file: the run itself will say so
            host, gpus, of_here = HostSensors(), GpuSensors(self.uuids), origin(self.file.parent, "system")
            with adding(self.file) as stream:
                count = 0
                while not self.closing.wait(EVERY):
                    self.last = {"time": time.time(), "node": platform.node(), **host.read(), "gpus": gpus.read()}
                    for event in self.wrong(self.last["gpus"]):
                        self.say(event)
                    add(stream, self.last | of_here)
                    count += 1
                    if count % WRITE_EVERY == 0:
                        self.also()

    def wrong(self, gpus: Sequence[dict[str, Any]]) -> Iterator[Event]:
        """What is wrong with the GPUs, said once when it begins."""
        now: dict[str, str] = {}
        for at, gpu in enumerate(gpus):
            name = f"GPU {at} on {platform.node()}"
            if "lost" in gpu:
                now[f"gpu_lost {at}"] = f"{name} does not answer: {gpu['lost']}"
            for why in gpu.get("throttles", []):
                if why not in USUAL:
                    clock = f" at {gpu['clock_mhz']} MHz" if "clock_mhz" in gpu else ""
                    heat = f", {gpu['temperature_c']} °C" if "temperature_c" in gpu else ""
                    now[f"throttled {at} {why}"] = f"{name} is slowed down: {why}{clock}{heat}"
            if gpu.get("ecc_errors"):
                count = gpu["ecc_errors"]
                now[f"ecc {at} {count}"] = f"{name} has {count} uncorrectable memory errors; have it checked"
        yield from (Event(self.step, key.split()[0], text) for key, text in now.items() if key not in self.said)
        self.said = set(now)

    def write_event(self, event: Event) -> None:
        """Append an event to this machine's file."""
        with adding(self.events) as stream:
            add(stream, {"time": time.time(), **event._asdict(), **origin(self.events.parent, "events")})
