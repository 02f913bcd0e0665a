"""Says what a run is at when that takes long: no stage is silent for more than five seconds.

Every piece of work is noted for the watchdog anyway (`World.note`), in words; what needs no world calls `note` itself.
A thread of rank 0 reads the last note. The steps of training say nothing here, but for the first, which may take a
minute: their records do; nor does work whose progress is shown.
"""

import os
import re
import sys
import threading
import time

SILENT = 5.0  # seconds
OF_STEPS = ("step", "the rows of step")


class Still:
    """A context manager with the thread, which ends with it."""

    doing = "the start"
    """What this process is at."""
    shown = 0.0
    """When its progress was last shown otherwise."""

    def __init__(self, enabled: bool | None = None):
        """`enabled`: whether this process says anything; None: if it is rank 0, or no rank."""
        Still.doing = "the start"
        self.stage, self.since, self.steps = "", time.monotonic(), set[str]()
        self.said = self.since
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="still", daemon=True)
        if os.environ.get("RANK", "0") == "0" if enabled is None else enabled:
            self.thread.start()

    def __enter__(self) -> "Still":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def watch(self) -> None:
        """Look at the last note now and then."""
        while not self.closing.wait(SILENT / 10):
            if text := self.look(Still.doing, time.monotonic()):
                print(text, file=sys.stderr, flush=True)

    def look(self, doing: str, now: float) -> str:
        """What to say of a note at a time, "" for nothing."""
        stage = re.split(r",| \d|[^\w ]", doing)[0].strip()  # pieces of one stage differ in what follows
        if stage in OF_STEPS:
            self.steps.add(doing)
        if stage != self.stage:
            self.stage, self.since, self.said = stage, now, now
        is_usual = stage in OF_STEPS and len(self.steps) > 2  # the rows of the first step, the step, the next rows
        if is_usual or now - max(self.said, Still.shown) < SILENT:
            return ""
        self.said = now
        return f"{doing}: {now - self.since:.0f} s"

    def close(self) -> None:
        """End the thread."""
        self.closing.set()


def note(doing: str) -> None:
    """Name the piece of work that begins."""
    Still.doing = doing
