"""The operations of a trace side by side on a GPU: a prediction.

The streams run in the order and with the waits that FSDP2 issued: kernels of several streams share the processors,
collectives of one group run one after the other, and while one runs kernels are slower.
"""

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from logtrain.planning.cost import Workload, seconds
from logtrain.planning.gpu import Gpu
from logtrain.planning.operation import COLLECTIVES, COMPUTE, Op

DONE = 1e-12  # seconds left of an operation that has ended


@dataclass
class Timeline:
    """Seconds, one of each for every operation, from the first launch on."""

    start: list[float]
    end: list[float]
    alone: list[float]
    """how long it would take with nothing beside it"""
    issued: list[float]
    """when the host launched it"""


def simulate(ops: Sequence[Op], gpu: Gpu, workload: Workload) -> Timeline:
    """When each operation runs. The host launches them one after the other and never waits for the GPU."""
    simulation = Simulation(ops, gpu, workload)
    while simulation.running or any(simulation.streams.values()):
        simulation.advance(simulation.start_ready())
    return simulation.timeline


class Simulation:
    """A GPU on its way through a trace."""

    def __init__(self, ops: Sequence[Op], gpu: Gpu, workload: Workload):
        self.ops, self.gpu, self.workload = ops, gpu, workload
        alone = [seconds(op, gpu, workload) for op in ops]
        issued = np.cumsum([op.launches * gpu.host for op in ops]).tolist()
        self.timeline = Timeline([0.0] * len(ops), [math.inf] * len(ops), alone, issued)
        self.left = list(alone)
        self.streams: dict[str, deque[int]] = defaultdict(deque)  # operations that have not ended, in order
        self.groups: dict[tuple[int, ...], deque[int]] = defaultdict(deque)  # the collectives among them, by ranks
        for number, op in enumerate(ops):
            self.streams[op.stream].append(number)
            if op.kind in COLLECTIVES:
                self.groups[op.shape].append(number)
        self.running: set[int] = set()
        self.now = 0.0

    def start_ready(self) -> float:
        """Start every operation that nothing holds back; -> when the host launches the next of the others."""
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
        """For an operation on another stream, or for an earlier collective of the same ranks."""
        op = self.ops[number]
        if any(self.timeline.end[other] == math.inf for other in op.waits):
            return True
        return op.kind in COLLECTIVES and self.groups[op.shape][0] != number

    def advance(self, until: float) -> None:
        """Let time go on until an operation ends, at most until `until`."""
        rates = self.rates()
        step = min([until - self.now, *(self.left[number] / rate for number, rate in rates.items())])
        self.now += step
        for number, rate in rates.items():
            self.left[number] -= step * rate
            if self.left[number] <= DONE:
                self.finish(number)

    def rates(self) -> dict[int, float]:
        """How fast each running operation goes; alone it has rate 1."""
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
    """Which of KERNELS an operation of the compute stream counts as."""
    if op.phase == "update":
        return "optimizer"
    if op.sharding:
        return "sharding copies"
    if op.vocabulary:
        return "head"
    return {"product": "gemm", "attention": "attention"}.get(op.kind, "elementwise")


def breakdown(ops: Sequence[Op], repeats: Sequence[int], timeline: Timeline) -> tuple[float, dict[str, float]]:
    """(seconds of a step, seconds by KERNELS and REST), along the compute stream; the parts add up to the step.

    A kernel's time beyond what it takes alone is slowdown; time in which the compute stream stands still is
    communication, or the host where the next kernel was not launched yet.
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
