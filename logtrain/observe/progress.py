"""The progress of a long piece of work: on a terminal a bar with the time left, elsewhere a line now and then. It goes
to stderr, so that stdout holds results alone.
"""

import sys
import time
from collections.abc import Mapping

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from logtrain.core.still import Still, note
from logtrain.observe.records import as_line

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """A context manager around the work, whose `update` shows how far it has come."""

    def __init__(self, verb: str, total: int, *, title: str = "", in_bytes: bool = False, enabled: bool = True):
        """`verb`: the first word of every line. `total`: the items or bytes of the whole work. `title`: the text before
        the bar. `enabled`: False shows nothing, as on all ranks but one.
        """
        self.verb, self.total, self.enabled = verb, total, enabled
        self.began = self.said = time.monotonic()
        self.bar = None
        if enabled:
            note(f"{verb}: {title}" if title else verb)
        if enabled and sys.stderr.isatty():
            counts = DownloadColumn() if in_bytes else MofNCompleteColumn()
            columns = (
                TextColumn(title),
                BarColumn(),
                counts,
                TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(),
            )
            self.bar = rich.progress.Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("", total=total, facts="")

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, done: int, line: Mapping[str, float | int | str], bar: str = "") -> None:
        """Show that `done` of the total is complete. `line`: what a line tells beside the time left. `bar`: the text
        beside the bar.
        """
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=done, facts=bar)
            Still.shown = now
        elif self.enabled and now - self.said >= SECONDS_BETWEEN_LINES:
            self.said = Still.shown = now
            eta = {"eta_seconds": round((self.total - done) * (now - self.began) / done)} if done else {}
            print(f"{self.verb} {as_line({**line, **eta})}", file=sys.stderr, flush=True)
