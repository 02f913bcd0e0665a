"""Predicts when each operation of a trace runs on a GPU, beside the others.

The streams run in the order and with the waits that FSDP2 issued. Kernels of several streams share the processors,
collectives of one group run one after the other, and kernels are slower while a collective runs. The ranks of a job
wait for one another, so the slowest one's time counts.
"""

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from logtrain.planning.cost import Workload, beside_collectives, seconds, slowest_of
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
    slowest: dict[str, float]
    """By how much the slowest rank's operations of a kind take longer, as a share; of other kinds not at all."""


class Costs(NamedTuple):
    """All that a timeline takes from the GPU and the job."""

    alone: list[float]
    """Seconds of each operation with nothing beside it."""
    beside: list[float]
    """Factor of each while NCCL runs beside it."""
    host: float
    """Seconds that the host takes to launch a kernel."""
    slowest: dict[str, float]
    """As of `Timeline`."""
    by_copy_engines: tuple[str, ...]
    """As of `Workload`."""


def costs_of(ops: Sequence[Op], gpu: Gpu, workload: Workload) -> Costs:
    """The costs of the operations; blocks and micro-batches repeat, so each kind of operation is costed once."""
    known: dict[tuple, tuple[float, float]] = {}
    found = []
    for op in ops:
        key = (op.name, op.kind, op.shape, op.read, op.written, op.launches, op.workspace)
        if key not in known:
            known[key] = seconds(op, gpu, workload), beside_collectives(op, gpu)
        found.append(known[key])
    slowest = {"product": slowest_of(workload.ranks, gpu), "attention": workload.imbalance}
    alone, beside = ([pair[i] for pair in found] for i in (0, 1))
    return Costs(alone, beside, gpu.host, slowest, workload.by_copy_engines)


def simulate(ops: Sequence[Op], gpu: Gpu, workload: Workload) -> Timeline:
    """The timeline of the operations. The host launches them one after the other, and never waits for the GPU."""
    return run(ops, costs_of(ops, gpu, workload))


def run(ops: Sequence[Op], costs: Costs) -> Timeline:
    """`simulate` with costs that are known."""
    simulation = Simulation(ops, costs)
    while simulation.running or any(simulation.streams.values()):
        simulation.advance(simulation.start_ready())
    return simulation.timeline


class Simulation:
    """A GPU that runs through a trace."""

    def __init__(self, ops: Sequence[Op], costs: Costs):
        self.ops = ops
        issued = np.cumsum([op.launches * costs.host for op in ops]).tolist()
        self.timeline = Timeline([0.0] * len(ops), [math.inf] * len(ops), costs.alone, issued, costs.slowest)
        self.beside, self.left = costs.beside, list(costs.alone)
        self.is_collective = [op.kind in COLLECTIVES for op in ops]
        self.takes_processors = [op.kind in COLLECTIVES and op.kind not in costs.by_copy_engines for op in ops]
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
        return self.is_collective[number] and self.groups[op.shape][0] != number

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
        if len(self.running) == 1:
            return dict.fromkeys(self.running, 1.0)
        slower = any(self.takes_processors[number] for number in self.running)
        num_kernels = sum(not self.is_collective[number] for number in self.running)
        return {
            number: 1.0 if self.is_collective[number] else 1 / (num_kernels * (self.beside[number] if slower else 1.0))
            for number in self.running
        }

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
REST = ("slowdown beside collectives", "exposed communication", "host", "slowest rank")


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
    still counts as the host's if the next kernel was not launched yet, and else as communication. What the slowest rank
    takes longer than this one counts as its own part.
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
            spent["slowest rank"] += count * taken * timeline.slowest.get(op.kind, 0.0)
        before = timeline.end[number]
    return sum(spent.values()), spent
