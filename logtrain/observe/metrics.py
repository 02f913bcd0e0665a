"""The output of a run: metrics.jsonl for programs, log.txt to read later, and a table above a progress bar on the
screen.

Every value arrives as a plain Python number, so nothing here waits for the device.
"""

import os
import threading
import time
import zlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from logtrain.core.atomic import naming
from logtrain.core.origin import origin
from logtrain.core.sealed_lines import add, adding, sealed_line
from logtrain.observe.health import Event
from logtrain.observe.records import Record, as_line, cut_after
from logtrain.observe.screen import Lines, Table, on_terminal


class Metrics:
    """The records of one run. Rank 0 writes (`enabled`); on the other ranks every method does nothing.

    A resumed run continues the series in its folder: records after `resume_step`, the step of the checkpoint, are
    removed first, because these steps run again. `crc32`, of all records up to that step, is what the checkpoint knows
    of them; a run that finds others says so and goes on.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        enabled: bool,
        total_steps: int,
        resume_step: int = 0,
        crc32: int = 0,
        validates: bool = False,
    ):
        """`validates`: whether the validation at `resume_step` is made again."""
        self.outlet: Callable[[Record], None] = lambda _: None  # called with every record
        self.enabled, self.total_steps, self.crc32, self.lock = enabled, total_steps, 0, threading.Lock()
        if not enabled:
            return
        self.origins = origin(run_dir, "metrics"), origin(run_dir, "events")
        cut = cut_after(run_dir / "metrics.jsonl", resume_step, validates, self.origins[0])
        self.crc32 = cut.crc32
        self.records = open(run_dir / "metrics.jsonl", "ab")  # noqa: SIM115 (closed in close)
        self.events = adding(run_dir / "events.jsonl")
        self.log = open(run_dir / "log.txt", "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self.screen = Table(total_steps, resume_step) if on_terminal() else Lines(total_steps)
        if cut.later:
            self.info(f"metrics.jsonl: removed {cut.later} records made after the checkpoint; their steps run again")
        if cut.damaged:
            self.info(f"metrics.jsonl: removed {cut.damaged} lines that are damaged; their records are lost")
        if resume_step and crc32 not in (0, cut.crc32):
            self.info(f"metrics.jsonl: some records up to step {resume_step} are not as they were written")
        if resume_step and cut.last != resume_step:
            self.info(f"metrics.jsonl: has no record of step {resume_step}, at which the run goes on: some are lost")

    def train(self, record: Record) -> None:
        """Record a training step."""
        if self.enabled:
            self._write(record)
            self.screen.train(record)
            self.outlet(record)

    def valid(self, record: Record) -> None:
        """Record the loss on a validation set."""
        if self.enabled:
            self._write(record)
            self.screen.valid(record)
            self.outlet(record)

    def event(self, event: Event) -> None:
        """Record what a person should know in events.jsonl, with the time, and show it."""
        if self.enabled:
            with self.lock:
                add(self.events, {"time": time.time(), **event._asdict(), **self.origins[1]})
            self.info(f"{event.kind}: {event.text}")

    def info(self, text: str) -> None:
        """Write text that is no record to log.txt and to the screen."""
        if self.enabled:
            with self.lock:  # a signal is acknowledged by another thread
                self._write_log(text)
            self.screen.print(text)

    def close(self) -> None:
        """Close the files and leave the screen as it is. A second call does nothing."""
        if self.enabled and not self.log.closed:
            self.screen.close()
            for stream in (self.records, self.events, self.log):
                with naming(Path(os.fsdecode(stream.name))):  # a full disk may be noticed only now
                    stream.close()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self.enabled and kind is not None:
            self._write_log(f"stopped by {kind.__name__}: {error}")
        self.close()

    def _write(self, record: Record) -> None:
        with naming(Path(self.records.name)):
            line = sealed_line({**record, **self.origins[0]})
            self.records.write(line)
            self.records.flush()
        self.crc32 = zlib.crc32(line, self.crc32)
        with self.lock:
            self._write_log(as_line(record))

    def _write_log(self, text: str) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with naming(Path(self.log.name)):
            self.log.writelines(f"{now} {line}\n" for line in text.splitlines())
            self.log.flush()
