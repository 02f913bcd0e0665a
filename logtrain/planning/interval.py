"""A predicted figure with its interval, which comes from the ranges of the constants that the prediction rests on.

Each cause of doubt is set to the low and to the high end of its range, with everything else in the middle, and the step
is predicted anew; the differences add up in quadrature, as the causes are independent (first-order propagation; GUM,
JCGM 100:2008, 5.1). The ranges are such that about four figures of five should lie in their interval.
"""

from collections.abc import Callable, Sequence
from math import floor, hypot, log10
from typing import NamedTuple

from logtrain.planning.cost import Workload
from logtrain.planning.gpu import Gpu
from logtrain.planning.operation import Op
from logtrain.planning.timeline import breakdown, costs_of, run


class Interval(NamedTuple):
    """A figure, and the ends of its interval."""

    low: float
    """The low end."""
    middle: float
    """The figure with every constant at its value."""
    high: float
    """The high end."""

    def times(self, factor: float) -> "Interval":
        """The interval of the figure times something that is known."""
        return Interval(*(factor * end for end in self))

    def per(self, amount: float) -> "Interval":
        """The interval of `amount` over the figure, of which the ends change places."""
        return Interval(amount / self.high, amount / self.middle, amount / self.low)

    def holds(self, value: float) -> bool:
        """Whether a value lies within."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        """No more digits than are known: the unit is a power of ten of at most a quarter of the interval."""
        width = self.high - self.low
        places = -floor(log10(width / 4)) if width > 0 else 2
        low, middle, high = (f"{round(end, places):,.{max(0, places)}f}" for end in self)
        return f"{middle} ({low}-{high})"


def interval(gpu: Gpu, value: Callable[[Gpu], float]) -> Interval:
    """A figure that rests on a GPU's constants; `value` gives it for any of them."""
    middle, lower, higher = value(gpu), 0.0, 0.0
    for ends in gpu.extremes():
        changes = [value(end) - middle for end in ends]
        lower, higher = hypot(lower, min(0.0, *changes)), hypot(higher, max(0.0, *changes))
    return Interval(middle - lower, middle, middle + higher)


def step_interval(ops: Sequence[Op], repeats: Sequence[int], gpu: Gpu, workload: Workload) -> Interval:
    """Seconds of a step."""
    known: dict[
        str, float
    ] = {}  # of many constants nothing rests on in a job, such as those of the network on one node

    def seconds_on(varied: Gpu) -> float:
        costs = costs_of(ops, varied, workload)
        key = repr(costs)
        if key not in known:
            known[key] = breakdown(ops, repeats, run(ops, costs))[0]
        return known[key]

    return interval(gpu, seconds_on)
