"""How much memory a recorded program takes: the most that is alive at once, and what the allocator takes for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from logtrain.planning.operation import Op, Piece

SMALL = 2**20  # bytes: up to here the caching allocator has pools of their own
Events = Sequence[tuple[int, int, Piece]]  # (operations before it, bytes more or less, which storage)


@dataclass
class Peak:
    """The moment at which most memory is alive."""

    total: int
    by_category: dict[str, int] = field(default_factory=dict)
    op: int = 0
    reserved: int = 0  # by the allocator, for all of them and the gaps between


def peak(ops: Sequence[Op], memory: Events, first_op: int = 0) -> Peak:
    """Largest total from operation `first_op` on, by category; the workspace of a kernel counts while it runs."""
    alive: dict[str, int] = {}
    best, total, events = Peak(-1), 0, iter(memory)
    event = next(events, None)
    for number in range(len(ops) + 1):
        while event is not None and event[0] <= number:
            alive[event[2].category] = alive.get(event[2].category, 0) + event[1]
            total += event[1]
            event = next(events, None)
            if number >= first_op and total > best.total:
                best = Peak(total, dict(alive), number)
        if first_op <= number < len(ops):
            workspace = ops[number].workspace
            if total + workspace > best.total:
                best = Peak(total + workspace, {**alive, "kernel workspace": workspace}, number)
    best.reserved = reserved(memory, first_op)
    best.by_category = {name: size for name, size in best.by_category.items() if size}
    return best


def reserved(memory: Events, first_op: int = 0) -> int:
    """Bytes that the caching allocator takes from the GPU from operation `first_op` on, with expandable segments: each
    stream has an address range of its own; a tensor takes the smallest free piece of it that is large enough, or
    extends it, and what was taken is not given back. What is alive at `first_op` lies end to end.
    """
    pools: dict[tuple[str, bool], Pool] = {}
    at: dict[Piece, int] = {}
    size: dict[Piece, int] = {}

    def place(piece: Piece) -> None:
        at[piece] = pools.setdefault((piece.stream, size[piece] <= SMALL), Pool()).allocate(size[piece])

    before = [event for event in memory if event[0] < first_op]
    for _, change, piece in before:
        size[piece] = size.get(piece, 0) + change
    for piece in [piece for piece, held in size.items() if held]:
        place(piece)
    for _, change, piece in memory[len(before) :]:
        if piece in at:
            pools[piece.stream, size[piece] <= SMALL].free(at.pop(piece), size[piece])
        size[piece] = size.get(piece, 0) + change
        if size[piece]:
            place(piece)
    return sum(pool.end for pool in pools.values())


class Pool:
    """Best fit in one growing address range."""

    def __init__(self):
        self.end, self.holes = 0, {}  # holes: start -> length

    def allocate(self, size: int) -> int:
        fitting = [(length, start) for start, length in self.holes.items() if length >= size]
        if fitting:
            length, start = min(fitting)
            del self.holes[start]
            if length > size:
                self.holes[start + size] = length - size
            return start
        last = next((start for start, length in self.holes.items() if start + length == self.end), None)
        start = self.end if last is None else last
        self.holes.pop(last, None)
        self.end = start + size
        return start

    def free(self, start: int, size: int) -> None:
        after = self.holes.pop(start + size, 0)
        before = next((hole for hole, length in self.holes.items() if hole + length == start), None)
        if before is not None:
            start, size = before, size + self.holes.pop(before)
        self.holes[start] = size + after
