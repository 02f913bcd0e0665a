"""How much memory a recorded program takes: the most that is alive at once, and what the allocator takes for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from logtrain.planning.operation import Op, Storage

SMALL = 2**20  # bytes: up to here the caching allocator has pools of their own


class MemoryEvent(NamedTuple):
    """A storage that came, went, or changed its size."""

    num_ops: int
    """operations recorded before it"""
    change: int
    """bytes more, or less where negative"""
    storage: Storage


@dataclass
class Peak:
    """The moment at which most memory is alive, in bytes."""

    total: int
    by_category: dict[str, int] = field(default_factory=dict)
    op: int = 0
    """number of the operation that it comes before, or runs in"""
    reserved: int = 0
    """what the allocator takes over the whole program: all that is alive, and the gaps between"""


def peak(ops: Sequence[Op], memory: Sequence[MemoryEvent], first_op: int = 0) -> Peak:
    """The largest total from operation `first_op` on; the workspace of a kernel counts while it runs."""
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
    """What the caching allocator takes from the GPU from operation `first_op` on, with expandable segments: each
    stream has an address range of its own; a tensor takes the smallest hole of it that is large enough, or extends it,
    and what was taken is not given back. What is alive at `first_op` lies end to end.
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
    """Best fit in one growing address range, in bytes."""

    def __init__(self):
        self.end = 0
        self.holes: dict[int, int] = {}
        """start -> length"""

    def allocate(self, size: int) -> int:
        """Take the smallest hole that is large enough, or extend the range; -> where the allocation starts."""
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
        """Give an allocation back, joined with the holes on either side."""
        after = self.holes.pop(start + size, 0)
        before = next((hole for hole, length in self.holes.items() if hole + length == start), None)
        if before is not None:
            start, size = before, size + self.holes.pop(before)
        self.holes[start] = size + after
