"""Says what a run is at when that takes long: no stage is silent for more than five seconds.

Every piece of work is noted for the watchdog anyway (`World.note`), in words. A thread of rank 0 reads the last note.
The steps of training say nothing here, but for the first, which may take a minute: their records do.
"""

import re
import sys
import threading
import time

from logtrain.core.watchdog import Watchdog

SILENT = 5.0  # seconds
OF_STEPS = ("step", "the rows of step")


class Still:
    """The thread, which ends with `close`. It reads the notes of the watchdog that is made while it runs."""

    def __init__(self, enabled: bool):
        self.before = Watchdog.latest
        self.stage, self.since, self.steps = "", time.monotonic(), set[str]()
        self.said = self.since
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="still", daemon=True)
        if enabled:
            self.thread.start()

    def watch(self) -> None:
        """Look at the last note now and then."""
        while not self.closing.wait(SILENT / 10):
            watchdog = Watchdog.latest
            doing = "the start" if watchdog is self.before or watchdog is None else watchdog.doing
            if text := self.look(doing, time.monotonic()):
                print(text, file=sys.stderr, flush=True)

    def look(self, doing: str, now: float) -> str:
        """What to say of a note at a time, "" for nothing."""
        stage = re.split(r",| \d|[^\w ]", doing)[0].strip()  # pieces of one stage differ in what follows
        if stage in OF_STEPS:
            self.steps.add(doing)
        if stage != self.stage:
            self.stage, self.since, self.said = stage, now, now
        is_usual = stage in OF_STEPS and len(self.steps) > 2  # the rows of the first step, the step, the next rows
        if is_usual or now - self.said < SILENT:
            return ""
        self.said = now
        return f"{doing}: {now - self.since:.0f} s"

    def close(self) -> None:
        """End the thread."""
        self.closing.set()
