"""What is wrong with a run, told from figures that it has anyway: events with a kind, a text and the step.

Every check is said once when it begins to be true, and again only after it was not true in between.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from shutil import disk_usage
from typing import NamedTuple

from logtrain.core.units import size
from logtrain.observe.config import HealthConfig

WINDOW, FEWEST = 100, 20  # values that a spike is held against; below FEWEST none is one
NEAR = 11  # values just before, whose median is what a value would be without a spike, also where the figure falls
TIMES = 5  # records in a row in which a rank must be slow: on a busy machine one says nothing
LEAST_DEVIATION = 0.01  # of the median: equal values have none
SIGMA = 1.4826  # standard deviations in a median absolute deviation, of normal values


class Event(NamedTuple):
    """Something that a person should know."""

    step: int
    """The step that it was at."""
    kind: str
    """One word by which to look for it."""
    text: str
    """What it is, in words."""
    value: float = 0.0
    """How bad it is, in the kind's own unit: a spike's z-score, a straggler's factor."""


class Series:
    """The last values of one figure, for spikes in the next one."""

    def __init__(self):
        self.values: deque[float] = deque(maxlen=NEAR)
        self.steps_up: deque[float] = deque(maxlen=WINDOW)  # each value less the median of the NEAR before it

    def z_score(self, value: float) -> float:
        """How far a value lies above those just before, in standard deviations of that, estimated by the median
        absolute deviation (Iglewicz & Hoaglin 1993). 0 while there are too few; the value is remembered.
        """
        if not math.isfinite(value):
            return 0.0
        z, up = 0.0, value - self.median
        if len(self.steps_up) >= FEWEST:
            usual = statistics.median(self.steps_up)
            deviation = statistics.median(abs(before - usual) for before in self.steps_up)
            z = (up - usual) / (SIGMA * max(deviation, LEAST_DEVIATION * abs(self.median)) or 1.0)
        if self.values:
            self.steps_up.append(up)
        self.values.append(value)
        return z

    @property
    def median(self) -> float:
        """The median of the values just before, 0 where there is none."""
        return statistics.median(self.values) if self.values else 0.0


class Health:
    """The checks of a run; rank 0 makes them at every record."""

    def __init__(self, config: HealthConfig, nodes: Sequence[str]):
        """`nodes`: the machine's name of each rank."""
        self.config, self.nodes = config, nodes
        self.series = {"loss": Series(), "gradient norm": Series()}
        self.slow = [0] * len(nodes)  # records in a row, by rank
        self.said: set[str] = set()

    def once(self, name: str, is_true: bool) -> bool:
        """Whether a check has become true just now."""
        is_new = is_true and name not in self.said
        (self.said.add if is_true else self.said.discard)(name)
        return is_new

    def spikes(self, step: int, figures: dict[str, float]) -> Iterator[Event]:
        """The spikes of one step. `figures`: its values of the series that are watched."""
        for name, value in figures.items():
            series = self.series[name]
            usual, z = series.median, series.z_score(value)
            if self.config.spike and z >= self.config.spike:
                told = f"{name} {value:.4g} at step {step}, {usual:.4g} before: {z:.0f} deviations above"
                yield Event(step, "spike", told, round(z, 2))

    def stragglers(self, step: int, seconds: Sequence[float]) -> Iterator[Event]:
        """Ranks that have computed for longer than others in several records. `seconds`: of each, for equal work."""
        for rank, own in enumerate(seconds):
            others = statistics.median([other for at, other in enumerate(seconds) if at != rank] or [own])
            factor = own / others if others else 1.0
            self.slow[rank] = self.slow[rank] + 1 if factor >= self.config.straggler else 0
            is_slow = bool(self.config.straggler) and self.slow[rank] >= TIMES
            if self.once(f"rank {rank}", is_slow):
                told = f"rank {rank} on {self.nodes[rank]} computes for {factor:.2f} times as long as the other ranks"
                yield Event(step, "straggler", f"{told}; every step waits for it", round(factor, 3))

    def waits(self, step: int, data_seconds: float, step_seconds: float) -> Iterator[Event]:
        """Whether the steps wait for their rows."""
        share = data_seconds / max(step_seconds, 1e-9)
        if self.once("data wait", bool(self.config.data_wait) and share >= self.config.data_wait):
            yield Event(
                step, "data_wait", f"{share:.0%} of the steps' time is spent in waiting for rows; is the disk slow?"
            )

    def disk(self, step: int, folder: str, checkpoint_bytes: int) -> Iterator[Event]:
        """Whether the disk of `folder` is filling up."""
        try:
            free = disk_usage(folder).free
        except OSError:  # it says so itself at the next write
            return
        if self.once("disk", free < self.config.disk * checkpoint_bytes):
            told = f"{folder}: {size(free)} free, a checkpoint takes {size(checkpoint_bytes)}; free some now"
            yield Event(step, "disk", told)
