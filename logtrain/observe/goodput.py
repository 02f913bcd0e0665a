"""Where the time of a run goes, over all its attempts, and what it costs.

Each start of a run is an attempt. goodput.json has the seconds of every attempt by stage, which add up to its wall
time, and how far they were when each checkpoint was begun, its mark. A run that goes on from a checkpoint has lost what
came after the mark. So the parts of `account` add up to the time from the first start to the last moment.
"""

import contextlib
import itertools
import math
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from logtrain.core.entry import seconds_running
from logtrain.core.origin import Origin, origin, read_sealed_in
from logtrain.core.untrusted import from_json, sealed

FILE = "goodput.json"
STAGES = ("start", "load", "step", "data wait", "validation", "checkpoint", "export")
AGAIN = ("step", "data wait", "validation")  # what is done again after a kill
LOST, IDLE = "lost", "idle"
COUNTED = ("metrics.jsonl", "events.jsonl", "system.jsonl", "forgetting.json")

MOST = 1e18  # of seconds, tokens, dollars: more cannot be


@dataclass
class Attempt:
    """One start of a run, in goodput.json."""

    began: float
    """When it began, in seconds since 1970."""
    last: float
    """When it was last heard of."""
    devices: int
    """GPUs; without any, ranks."""
    resumed_at: int = 0
    """Step that it went on from."""
    tokens: int = 0
    """Tokens that the run has been trained on."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*STAGES, LOST), 0.0))
    """Seconds by stage; `lost` is here what a step took that was dropped."""
    marks: dict[str, dict[str, float]] = field(default_factory=dict)
    """`seconds` by the step of each checkpoint, when its save began."""
    host: str = ""
    """The machine of rank 0."""
    device: str = "rank"
    """The GPU's name; "rank" without any."""
    total_steps: int = 0
    """Steps of the whole run."""
    price: float = 0.0
    """Dollars for an hour of a device; 0 where that is not known."""
    ended: str = ""
    """How it ended; "" while it runs, and after a kill."""
    lines: dict[str, int] = field(default_factory=dict)
    """Whole lines of each file of COUNTED that was there when this was written: with fewer it has lost some."""


@dataclass(frozen=True)
class Account:
    """The time of a run and what it costs."""

    wall: float
    """Seconds from the first start to the last moment."""
    seconds: dict[str, float]
    """The same by stage, with what was lost to kills, and idle between the attempts; they have the sum `wall`."""
    device_hours: float
    """Hours of all attempts, each times its devices."""
    hours: float
    """Hours of all attempts: what a service counts that leaves out the number of GPUs."""
    tokens: int
    """Tokens that the run has been trained on."""
    price: float
    """Dollars for an hour of a device; 0 where that is not known."""
    device: str
    """The GPU's name; "rank" without any."""

    @property
    def dollars(self) -> float:
        """What the run has cost."""
        return self.device_hours * self.price

    @property
    def goodput(self) -> float:
        """Share of the time in which steps were made that count."""
        return self.seconds["step"] / max(self.wall, 1e-9)

    def told(self) -> list[str]:
        """Lines for people."""
        price, device = self.price, "rank" if self.device == "rank" else "GPU"
        parts = [f"{name} {clock(spent)}" for name, spent in self.seconds.items() if spent >= 0.5]
        lines = [f"time: {clock(self.wall)}, of it {self.goodput:.1%} in steps that count ({', '.join(parts)})"]
        if price:
            dollars = self.dollars
            lines.append(
                f"cost: {self.device_hours:.3g} {device}-hours at ${price:g}: ${dollars:.2f}, "
                f"{self.tokens / max(dollars, 1e-9):,.0f} tokens a dollar; counted by hours alone, as hosted services "
                f"do: ${self.hours * price:.2f}"
            )
        return lines


class Goodput:
    """The stage that this attempt is at, and the seconds of those before. Rank 0 keeps it; any thread may write it."""

    def __init__(self):
        age = seconds_running()
        began = time.time() - age
        self.stage_now, self.lock, self.earlier, self.file = "start", threading.Lock(), [], None
        self.counts: list[Lines] = []
        self.origin: Origin = {}
        self.writing = threading.Lock()  # of files, which may be slow: `lock` is taken in every step
        self.attempt = Attempt(began, began, devices=1)
        self.since, self.written = time.monotonic() - age, -math.inf

    def open(self, folder: Path, resumed_at: int, **facts: Any) -> None:
        """Go on with the account in a run's folder, which is written from now on. One that is damaged begins anew.
        `facts`: fields of the attempt.
        """
        with contextlib.suppress(ValueError, OSError):
            self.earlier = read_attempts(folder)
        with contextlib.suppress(OSError):
            self.origin = origin(folder, "goodput")
        self.attempt = replace(self.attempt, resumed_at=resumed_at, host=platform.node(), **facts)
        self.file = folder / FILE
        self.mark(resumed_at)
        self.write()
        self.counts = [Lines(folder / name) for name in COUNTED]  # from the next write on: records are cut until then

    def end(self, how: str) -> None:
        """Record how the attempt has ended."""
        self.attempt.ended = how[:300]
        self.write()

    def settle(self) -> None:
        """Count the time until now for the stage under way; with the lock held."""
        now = time.monotonic()
        self.attempt.seconds[self.stage_now] += now - self.since
        self.attempt.last += now - self.since
        self.since = now

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block for a stage, less that of stages inside."""
        before = self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def enter(self, name: str) -> str:
        """Count the time for a stage from now on; -> the one before."""
        with self.lock:
            self.settle()
            before, self.stage_now = self.stage_now, name
        return before

    def mark(self, step: int) -> None:
        """Remember how far the time is, at the step of a checkpoint."""
        with self.lock:
            self.settle()
            self.attempt.marks[str(step)] = {name: round(spent, 3) for name, spent in self.attempt.seconds.items()}

    def lose(self, seconds: float) -> None:
        """Count seconds of steps as lost: of one that was dropped."""
        with self.lock:
            self.settle()
            seconds = min(seconds, self.attempt.seconds["step"])
            self.attempt.seconds["step"] -= seconds
            self.attempt.seconds[LOST] += seconds

    def account(self) -> Account:
        """The account of the run until now."""
        with self.lock:
            self.settle()
            return account([*self.earlier, self.attempt])

    def write_now_and_then(self) -> None:
        """Write goodput.json if that was a second ago: a write takes half a millisecond, and a step may take few."""
        if time.monotonic() - self.written >= 1.0 and not self.writing.locked():
            self.write()

    def write(self) -> None:
        """Write goodput.json, if a folder was given. A disk that is full keeps the old one."""
        if self.file is None:
            return
        self.written = time.monotonic()
        aside = self.file.with_name(f".{FILE}.partial")  # without fsync: it is written every few seconds
        with contextlib.suppress(OSError), self.writing:
            lines = {count.file.name: count() for count in self.counts if count.file.exists()}
            with self.lock:
                self.settle()
                self.attempt.lines = lines
                attempts = [asdict(each) for each in (*self.earlier, self.attempt)]
            aside.write_bytes(sealed({"attempts": attempts} | self.origin))
            aside.replace(self.file)


class Lines:
    """The whole lines of a file that grows, of which only what is new is read."""

    def __init__(self, file: Path):
        self.file, self.end, self.count = file, 0, 0

    def __call__(self) -> int:
        """Their number now."""
        with contextlib.suppress(OSError), open(self.file, "rb") as stream:
            if stream.seek(0, os.SEEK_END) < self.end:
                self.end = self.count = 0
            at = stream.seek(self.end)
            while block := stream.read(1 << 20):
                self.count += block.count(b"\n")
                self.end = max(self.end, at + block.rfind(b"\n") + 1)  # a torn end is cut off by whoever goes on
                at += len(block)
        return self.count


@dataclass
class Attempts:
    """The content of goodput.json."""

    attempts: list[Attempt]
    """In order of time."""


def read_attempts(folder: Path) -> list[Attempt]:
    """The attempts of a run, [] where none is recorded. Raises ValueError for a file that is damaged."""
    file = folder / FILE
    if not file.exists():
        return []
    try:
        facts = from_json(Attempts, read_sealed_in(file, "goodput"))
        return [checked_attempt(attempt) for attempt in facts.attempts]
    except ValueError as error:
        what = str(error).removeprefix(f"{file}: ")
        raise ValueError(f"{file}: {what}; remove it to begin the account anew") from None


def checked_attempt(attempt: Attempt) -> Attempt:
    """An attempt with the seconds of every stage. Raises ValueError for figures that cannot be."""
    figures = [attempt.began, attempt.last, attempt.price, *attempt.seconds.values()]
    figures += [value for mark in attempt.marks.values() for value in mark.values()]
    counts = attempt.devices - 1, attempt.resumed_at, attempt.tokens, attempt.total_steps
    if not all(-MOST < figure < MOST for figure in figures) or not all(0 <= count < MOST for count in counts):
        raise ValueError("figures that cannot be")
    return replace(attempt, seconds={**dict.fromkeys((*STAGES, LOST), 0.0), **attempt.seconds})


def account(attempts: Sequence[Attempt]) -> Account:
    """The account of the attempts of a run, of which there is at least one."""
    kept = [replace(attempt, seconds=dict(attempt.seconds)) for attempt in attempts]
    for number, attempt in enumerate(attempts):
        lose_after(kept[:number], attempt.resumed_at)
    seconds = {name: sum(attempt.seconds.get(name, 0.0) for attempt in kept) for name in (*STAGES, LOST)}
    gaps = [max(0.0, after.began - before.last) for before, after in itertools.pairwise(kept)]
    seconds[IDLE] = sum(gaps)
    spent = [sum(attempt.seconds.values()) for attempt in kept]
    device_seconds = sum(own * attempt.devices for own, attempt in zip(spent, kept, strict=True))
    return Account(
        wall=sum(seconds.values()),
        seconds=seconds,
        device_hours=device_seconds / 3600,
        hours=sum(spent) / 3600,
        tokens=max(attempt.tokens for attempt in kept),
        price=kept[-1].price,
        device=kept[-1].device,
    )


def lose_after(attempts: Sequence[Attempt], step: int) -> None:
    """Count what the attempts have done after the checkpoint of `step` as lost."""
    for attempt in reversed(attempts):
        mark = attempt.marks.get(str(step))
        for name in AGAIN:
            lost = max(0.0, attempt.seconds[name] - (mark or {}).get(name, 0.0))
            attempt.seconds[name] -= lost
            attempt.seconds[LOST] += lost
        if mark is not None:
            return


def clock(seconds: float) -> str:
    """A time as people read it: 45 s, 12:07 min, 3:05:09 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(whole, 60)
    return f"{minutes}:{seconds:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{seconds:02} h"
