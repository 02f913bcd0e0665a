"""What torch.compile, or kernels written for it, save in a trace: chains of elementwise operations become one kernel
that reads what comes from outside and writes what is needed outside.

A tensor between two chains is not kept either where the later chain can compute it again from no more bytes than it
has: so does the min-cut partitioner of AOTAutograd with what the forward leaves for the backward.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

from logtrain.planning.operation import COMPUTE, Op, Storage
from logtrain.planning.recorder import Recorder

SMALL = 16  # a result this many times smaller than what it is computed from (a norm's scale) is kept


Sizes = dict[Storage, int]  # storages, with bytes read or written of each


def fuse(recorder: Recorder, name: str, breaks: Callable[[Op], bool] = lambda op: False) -> None:
    """Rewrites the bytes and launches of the recorded operations, and drops the memory of what is no longer kept.

    `name`: of the kernels; `breaks(op)`: whether an operation stays a kernel of its own.
    """
    chains = list(find_chains(recorder.ops, breaks))
    flow = Flow(recorder.ops, chains)
    sources = recomputed(flow)
    for chain in chains:
        fuse_chain(flow, chain, sources, name)
    recorder.memory = [event for event in recorder.memory if event.storage not in sources]


class Flow:
    """Which operation computes a storage within a chain, and which others read it."""

    def __init__(self, ops: list[Op], chains: list[list[int]]):
        self.ops = ops
        self.chain_of = {number: chain for chain in chains for number in chain}
        self.producer: dict[Storage, int] = {}
        self.readers: dict[Storage, list[int]] = defaultdict(list)
        for number, op in enumerate(ops):
            for storage, _ in op.inputs:
                self.readers[storage].append(number)
            for storage, _ in op.outputs:
                if number in self.chain_of and storage not in self.producer and storage not in self.readers:
                    self.producer[storage] = number
                elif number not in self.chain_of or self.producer.get(storage) not in self.chain_of[number]:
                    self.readers[storage].append(number)  # written by a kernel outside: it must exist


def recomputed(flow: Flow) -> dict[Storage, Sizes]:
    """The storages that are not kept, each with what it is computed from again."""
    sources: dict[Storage, Sizes] = {}
    for storage, number in flow.producer.items():  # in order, so that what it is computed from is decided
        size = max(size for other, size in flow.ops[number].outputs if other is storage)
        origins: Sizes = {}
        for other, bytes_read in flow.ops[number].inputs:
            origins |= sources.get(other, {other: bytes_read})
        elsewhere = [n for n in flow.readers[storage] if n not in flow.chain_of[number]]
        cost = sum(origins.values())
        again = all(n in flow.chain_of for n in elsewhere) and SMALL * size > cost and cost <= size
        if not elsewhere or again:
            sources[storage] = origins
    return sources


def fuse_chain(flow: Flow, chain: list[int], sources: dict[Storage, Sizes], name: str) -> None:
    """The last operation of a chain becomes the kernel `name`, which does what all of them did."""
    ops = flow.ops
    made = {storage for n in chain for storage, _ in ops[n].outputs if flow.producer.get(storage) in chain}
    read: Sizes = {}
    for n in chain:
        for storage, size in ops[n].inputs:
            if storage not in made:
                for origin, bytes_read in sources.get(storage, {storage: size}).items():
                    if origin not in made:
                        read[origin] = max(read.get(origin, 0), bytes_read)
    written = {storage: size for n in chain for storage, size in ops[n].outputs if storage not in sources}
    for n in chain[:-1]:
        ops[n].read = ops[n].written = ops[n].launches = 0
    last = ops[chain[-1]]
    last.name = name
    last.read, last.written, last.launches = sum(read.values()), sum(written.values()), 1


def find_chains(ops: list[Op], breaks: Callable[[Op], bool]) -> Iterable[list[int]]:
    """Runs of elementwise operations of one block in one phase, with nothing between them on their stream."""
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
