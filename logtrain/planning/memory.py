"""The memory that a recorded program takes: the most that is alive at once, and the allocator's total for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from logtrain.planning.operation import Op, Storage

# By how much more than traced a job may take, at most, as a share: 3% the tensors of real ranks were from the trace's
# (tests/planning/test_trace.py), and 2.4% gaps take without expandable segments (1.83 of 75.3 GiB, compressed-tensors
# pull 587).
UNSEEN = 0.054
# The same of a compiled job: Inductor's buffers are not traced. Two of its programs took 15 and 17% more (PyTorch pull
# 179937: 56.8 and 58.0 GiB; traced: 49.4).
UNSEEN_COMPILED = 0.17
SMALL = 2**20  # bytes of the largest tensor that the caching allocator takes from its pools for small ones


def at_most(reserved: float, compiled: bool) -> float:
    """The most that a job may take whose traced memory is `reserved`, in the same unit."""
    return reserved * (1 + (UNSEEN_COMPILED if compiled else UNSEEN))


class MemoryEvent(NamedTuple):
    """A storage that came, went, or changed its size."""

    num_ops: int
    """Number of operations that were recorded before."""
    change: int
    """Bytes by which the storage has grown, negative where it has shrunk."""
    storage: Storage
    """The storage."""


@dataclass
class Peak:
    """The moment at which most memory is alive, in bytes."""

    total: int
    """Bytes alive."""
    by_category: dict[str, int] = field(default_factory=dict)
    """Bytes alive by what they are for."""
    op: int = 0
    """Number of the operation before which, or in which, the peak is."""
    reserved: int = 0
    """Bytes that the allocator takes over the whole program, with the gaps between tensors."""


def peak(ops: Sequence[Op], memory: Sequence[MemoryEvent], first_op: int = 0) -> Peak:
    """The peak from operation `first_op` on; the workspace of a kernel counts while the kernel runs."""
    alive: dict[str, int] = {}
    best, total, events = Peak(-1), 0, iter(memory)
    event = next(events, None)
    for number in range(len(ops) + 1):
        while event is not None and event.num_ops <= number:
            alive[event.storage.category] = alive.get(event.storage.category, 0) + event.change
            total += event.change
            event = next(events, None)
            if number >= first_op and total > best.total:
                best = Peak(total, dict(alive), number)
        if first_op <= number < len(ops):
            workspace = ops[number].workspace
            if total + workspace > best.total:
                best = Peak(total + workspace, {**alive, "kernel workspace": workspace}, number)
    best.reserved = reserved_bytes(memory, first_op)
    best.by_category = {name: size for name, size in best.by_category.items() if size}
    return best


def reserved_bytes(memory: Sequence[MemoryEvent], first_op: int = 0) -> int:
    """Bytes that the caching allocator takes from the GPU from operation `first_op` on, with expandable segments. Each
    stream has an address range of its own, in which a tensor takes the smallest hole that is large enough, or extends
    the range; a range never shrinks. The tensors that are alive at `first_op` are taken to lie end to end.
    """
    pools: dict[tuple[str, bool], Pool] = {}
    start: dict[Storage, int] = {}
    size: dict[Storage, int] = {}

    def pool_of(storage: Storage) -> Pool:
        return pools.setdefault((storage.stream, size[storage] <= SMALL), Pool())

    before = [event for event in memory if event.num_ops < first_op]
    for event in before:
        size[event.storage] = size.get(event.storage, 0) + event.change
    for storage in [storage for storage, bytes_alive in size.items() if bytes_alive]:
        start[storage] = pool_of(storage).allocate(size[storage])
    for _, change, storage in memory[len(before) :]:
        if storage in start:
            pool_of(storage).free(start.pop(storage), size[storage])
        size[storage] = size.get(storage, 0) + change
        if size[storage]:
            start[storage] = pool_of(storage).allocate(size[storage])
    return sum(pool.end for pool in pools.values())


class Pool:
    """An address range that grows, in which allocations are placed by best fit. end: its size in bytes. holes: {start:
    length} of the free stretches, in bytes.
    """

    def __init__(self):
        self.end = 0
        self.holes: dict[int, int] = {}

    def allocate(self, size: int) -> int:
        """Take the smallest hole that is large enough, or extend the range; -> the start of the allocation."""
        fitting = [(length, start) for start, length in self.holes.items() if length >= size]
        if fitting:
            length, start = min(fitting)
            del self.holes[start]
            if length > size:
                self.holes[start + size] = length - size
            return start
        last = next((start for start, length in self.holes.items() if start + length == self.end), None)
        start = self.end if last is None else last
        self.holes.pop(start, None)
        self.end = start + size
        return start

    def free(self, start: int, size: int) -> None:
        """Free an allocation, and join it with the holes on either side."""
        after = self.holes.pop(start + size, 0)
        before = next((hole for hole, length in self.holes.items() if hole + length == start), None)
        if before is not None:
            start, size = before, size + self.holes.pop(before)
        self.holes[start] = size + after
