"""Predicts when each operation of a trace runs on a GPU, beside the others.

The streams run in the order and with the waits that FSDP2 issued. Kernels of several streams share the processors,
collectives of one group run one after the other, and kernels are slower while a collective runs.
"""

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from logtrain.planning.cost import Workload, seconds
from logtrain.planning.gpu import Gpu
from logtrain.planning.operation import COLLECTIVES, COMPUTE, Op

DONE = 1e-12  # an operation with fewer seconds left has ended


@dataclass
class Timeline:
    """The times of every operation, in seconds from the first launch on."""

    start: list[float]
    """When each operation starts."""
    end: list[float]
    """When it ends."""
    alone: list[float]
    """How long it would take with nothing beside it."""
    issued: list[float]
    """When the host launches it."""


def simulate(ops: Sequence[Op], gpu: Gpu, workload: Workload) -> Timeline:
    """The timeline of the operations. The host launches them one after the other, and never waits for the GPU."""
    simulation = Simulation(ops, gpu, workload)
    while simulation.running or any(simulation.streams.values()):
        simulation.advance(simulation.start_ready())
    return simulation.timeline


class Simulation:
    """A GPU that runs through a trace."""

    def __init__(self, ops: Sequence[Op], gpu: Gpu, workload: Workload):
        self.ops, self.gpu, self.workload = ops, gpu, workload
        alone = [seconds(op, gpu, workload) for op in ops]
        issued = np.cumsum([op.launches * gpu.host for op in ops]).tolist()
        self.timeline = Timeline([0.0] * len(ops), [math.inf] * len(ops), alone, issued)
        self.left = list(alone)
        self.streams: dict[str, deque[int]] = defaultdict(deque)  # operations that have not ended
        self.groups: dict[tuple[int, ...], deque[int]] = defaultdict(deque)  # collectives that have not ended, by ranks
        for number, op in enumerate(ops):
            self.streams[op.stream].append(number)
            if op.kind in COLLECTIVES:
                self.groups[op.shape].append(number)
        self.running: set[int] = set()
        self.now = 0.0

    def start_ready(self) -> float:
        """Start every operation that need not wait; -> when the host launches the next of the others."""
        next_launch = math.inf
        for queue in self.streams.values():
            if not queue or queue[0] in self.running or self.must_wait(queue[0]):
                continue
            issued = self.timeline.issued[queue[0]]
            if issued > self.now:
                next_launch = min(next_launch, issued)
            else:
                self.timeline.start[queue[0]] = self.now
                self.running.add(queue[0])
        return next_launch

    def must_wait(self, number: int) -> bool:
        """Whether an operation waits for one on another stream, or for an earlier collective of the same ranks."""
        op = self.ops[number]
        if any(self.timeline.end[other] == math.inf for other in op.waits):
            return True
        return op.kind in COLLECTIVES and self.groups[op.shape][0] != number

    def advance(self, until: float) -> None:
        """Move the time on until an operation ends, but not beyond `until`."""
        rates = self.rates()
        step = min([until - self.now, *(self.left[number] / rate for number, rate in rates.items())])
        self.now += step
        for number, rate in rates.items():
            self.left[number] -= step * rate
            if self.left[number] <= DONE:
                self.finish(number)

    def rates(self) -> dict[int, float]:
        """The rate of each running operation, which is 1 if it runs alone."""
        is_collective = {number: self.ops[number].kind in COLLECTIVES for number in self.running}
        by_processors = any(
            collective and self.ops[number].kind not in self.workload.by_copy_engines
            for number, collective in is_collective.items()
        )
        slower = self.gpu.beside_collectives if by_processors else 1.0
        num_kernels = len(is_collective) - sum(is_collective.values())
        kernel_rate = 1 / (slower * max(1, num_kernels))
        return {number: 1.0 if collective else kernel_rate for number, collective in is_collective.items()}

    def finish(self, number: int) -> None:
        """End a running operation now."""
        op = self.ops[number]
        self.timeline.end[number] = self.now
        self.running.remove(number)
        self.streams[op.stream].popleft()
        if op.kind in COLLECTIVES:
            self.groups[op.shape].popleft()


# ---- where a step's time goes

KERNELS = ("gemm", "attention", "elementwise", "head", "sharding copies", "optimizer")
REST = ("slowdown beside collectives", "exposed communication", "host")


def kernel_class(op: Op) -> str:
    """The one of KERNELS that an operation of the compute stream counts as."""
    if op.phase == "update":
        return "optimizer"
    if op.sharding:
        return "sharding copies"
    if op.vocabulary:
        return "head"
    return {"product": "gemm", "attention": "attention"}.get(op.kind, "elementwise")


def breakdown(ops: Sequence[Op], repeats: Sequence[int], timeline: Timeline) -> tuple[float, dict[str, float]]:
    """(seconds of a step, its parts by the names of KERNELS and REST), along the compute stream.

    The time of a kernel beyond that which it takes alone counts as slowdown. Time in which the compute stream stands
    still counts as the host's if the next kernel was not launched yet, and else as communication.
    """
    spent: dict[str, float] = dict.fromkeys((*KERNELS, *REST), 0.0)
    before = 0.0
    for number, op in enumerate(ops):
        if op.stream != COMPUTE:
            continue
        count = 1 if op.phase == "update" else repeats[op.micro_batch - 1]
        gap, taken = timeline.start[number] - before, timeline.end[number] - timeline.start[number]
        late = min(gap, max(0.0, timeline.issued[number] - before))
        spent["host"] += count * late
        spent["exposed communication"] += count * (gap - late)
        if op.kind in COLLECTIVES:
            spent["exposed communication"] += count * taken
        else:
            spent[kernel_class(op)] += count * timeline.alone[number]
            spent["slowdown beside collectives"] += count * (taken - timeline.alone[number])
        before = timeline.end[number]
    return sum(spent.values()), spent
