"""What torch.compile, or kernels written for it, save in a trace: chains of elementwise operations become one kernel
that reads what comes from outside and writes what is needed outside.

A tensor between two chains is not kept either where the later chain can compute it again from no more bytes than it
has: so does the min-cut partitioner of AOTAutograd with what the forward leaves for the backward.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

from logtrain.planning.operation import COMPUTE, Op, Piece
from logtrain.planning.recorder import Recorder

SMALL = 16  # a result this many times smaller than what it is computed from (a norm's scale) is kept


Sources = dict[Piece, dict[Piece, int]]  # what is not kept -> what it is computed from again, with bytes


def fuse(recorder: Recorder, name: str, breaks: Callable[[Op], bool] = lambda op: False) -> None:
    """Rewrite the bytes and launches of the recorded operations, and drop the memory of what is no longer kept.
    `name`: of the kernels; `breaks(op)`: whether an operation stays a kernel of its own.
    """
    ops = recorder.ops
    chains = list(find_chains(ops, breaks))
    chain_of = {number: chain for chain in chains for number in chain}
    producer, readers = producers_and_readers(ops, chain_of)
    sources = not_kept(ops, chain_of, producer, readers)
    for chain in chains:
        made = {piece for n in chain for piece, _ in ops[n].outputs if producer.get(piece) in chain}
        read: dict[Piece, int] = {}
        for piece, size in (entry for n in chain for entry in ops[n].inputs if entry[0] not in made):
            for origin, bytes_read in sources.get(piece, {piece: size}).items():
                if origin not in made:
                    read[origin] = max(read.get(origin, 0), bytes_read)
        written = {piece: size for n in chain for piece, size in ops[n].outputs if piece not in sources}
        for n in chain[:-1]:
            ops[n].read = ops[n].written = ops[n].launches = 0
        last = ops[chain[-1]]
        last.name = name
        last.read, last.written, last.launches = sum(read.values()), sum(written.values()), 1
    recorder.memory = [event for event in recorder.memory if event[2] not in sources]


def producers_and_readers(
    ops: list[Op], chain_of: dict[int, list[int]]
) -> tuple[dict[Piece, int], dict[Piece, list[int]]]:
    """Which operation of a chain makes a piece, and which operations read it. A kernel outside of the chain that writes
    to it counts as a reader: the piece must exist.
    """
    producer: dict[Piece, int] = {}
    readers: dict[Piece, list[int]] = defaultdict(list)
    for number, op in enumerate(ops):
        for piece, _ in op.inputs:
            readers[piece].append(number)
        for piece, _ in op.outputs:
            if number in chain_of and piece not in producer and piece not in readers:
                producer[piece] = number
            elif number not in chain_of or producer.get(piece) not in chain_of[number]:
                readers[piece].append(number)
    return producer, readers


def not_kept(
    ops: list[Op], chain_of: dict[int, list[int]], producer: dict[Piece, int], readers: dict[Piece, list[int]]
) -> Sources:
    """The pieces that live within a chain alone, or that each chain that reads them computes again."""
    sources: Sources = {}
    for piece, number in producer.items():  # in order, so that what it is computed from is decided
        size = max(size for other, size in ops[number].outputs if other is piece)
        origin: dict[Piece, int] = {}
        for other, bytes_read in ops[number].inputs:
            origin |= sources.get(other, {other: bytes_read})
        elsewhere = [n for n in readers[piece] if n not in chain_of[number]]
        cost = sum(origin.values())
        again = all(n in chain_of for n in elsewhere) and SMALL * size > cost and cost <= size
        if not elsewhere or again:
            sources[piece] = origin
    return sources


def find_chains(ops: list[Op], breaks: Callable[[Op], bool]) -> Iterable[list[int]]:
    """Runs of elementwise operations of one block in one phase, with nothing between them on their stream.
    `breaks(op)`: whether an operation belongs to none.
    """
    chain: list[int] = []
    for number, op in enumerate(ops):
        if op.stream != COMPUTE:
            continue
        own = op.kind == "pointwise" and not op.sharding and not op.vocabulary and op.phase != "update"
        same = chain and (ops[chain[-1]].module, ops[chain[-1]].phase) == (op.module, op.phase)
        if chain and not (own and same and not breaks(op)):
            yield chain
            chain = []
        if own and "embedding" not in op.name and not breaks(op):
            chain.append(number)
    if chain:
        yield chain
