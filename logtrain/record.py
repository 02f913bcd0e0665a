"""Records what a program would do on a GPU while it runs on tensors without contents: every kernel in order, the
stream it is on, what it waits for, its FLOPs and memory traffic, and which memory is alive at every moment.

    with FakeTensorMode(), Recorder() as recorder:
        model(x).backward()
    recorder.ops, recorder.memory

Nothing is modelled: the operations are those that PyTorch dispatches, and the streams and events those that FSDP2
uses. On the pretended "cpu" device FSDP2 asks `torch.cpu` for streams; the recorder puts its own there. What a custom
operation does inside is not dispatched: NOTES says it, with the lines of code it was read in.
"""

import weakref
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group, _world
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

COMPUTE = "compute"
ALLOCATION = 512  # bytes: what the caching allocator rounds up to
SMALL = 2**20  # bytes: up to here it has pools of their own
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
OVERWRITE = {"copy_", "_foreach_copy_", "fill_", "zero_", "all_gather_copy_in"}  # their target is written, not read
LOOKUPS = {"embedding", "index", "index_select", "gather"}  # read what they return, not the whole table
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "device", "lift_fresh", "detach"}
NO_KERNEL |= {"_record_function_enter_new", "_record_function_exit", "wait_tensor", "barrier", "sym_size", "set_data"}
SYNCS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_consecutive"}
COLLECTIVES = {
    "_allgather_base_": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "allreduce_": "all_reduce",
    "all_reduce": "all_reduce",
    "broadcast_": "broadcast",
}


@dataclass(slots=True, eq=False)
class Piece:
    """A storage: how large it is now, and what for."""

    category: str
    stream: str  # whose memory pool it came from
    size: int = 0


@dataclass(slots=True)
class Op:
    """One dispatched operation: usually one kernel."""

    name: str
    kind: str  # product, attention, pointwise, or a collective: all_gather, reduce_scatter, all_reduce, broadcast
    phase: str  # forward, backward or update
    module: str  # of the model: the unit of FSDP2 whose forward or backward is running
    micro_batch: int
    stream: str
    waits: tuple[int, ...]  # earlier operations on other streams that must have ended
    read: int  # bytes
    written: int
    flops: int = 0
    shape: tuple[int, ...] = ()  # product: M, N, K, batch; attention: T, N, K, H; collective: ranks of the group
    launches: int = 1
    workspace: int = 0  # bytes that live only inside
    sharding: bool = False  # FSDP2's own copies, before and after a collective
    vocabulary: bool = False  # a dimension is the vocabulary's
    live: int = 0  # bytes alive when it has run
    inputs: tuple[tuple[Piece, int], ...] = ()  # storages that it reads, with the bytes of them
    outputs: tuple[tuple[Piece, int], ...] = ()


class RecordedStream:
    """Stands in for torch.cpu.Stream."""

    def __init__(self, recorder: "Recorder", name: str):
        self.recorder, self.name = recorder, name
        self.last: int | None = None
        self.pending: set[int] = set()

    def record_event(self) -> "RecordedEvent":
        return RecordedEvent(self.recorder).record(self)

    def wait_event(self, event: "RecordedEvent") -> None:
        if event.op is not None:
            self.pending.add(event.op)

    def wait_stream(self, other: "RecordedStream") -> None:
        self.wait_event(other.record_event())


class RecordedEvent:
    """Stands in for torch.cpu.Event: the last operation on a stream when it was recorded."""

    def __init__(self, recorder: "Recorder"):
        self.recorder, self.op = recorder, None

    def record(self, stream: RecordedStream | None = None) -> "RecordedEvent":
        self.op = (stream or self.recorder.stream).last
        return self


class Recorder(TorchDispatchMode):
    """Also what the recorded code sees as its device: `vocab_size` marks the operations of the head."""

    def __init__(self, vocab_size: int = 0):
        super().__init__()
        self.vocab_size = vocab_size
        self.ops: list[Op] = []
        self.syncs: list[str] = []
        self.memory: list[tuple[int, int, Piece]] = []  # (operations before it, bytes more or less, which storage)
        self.pieces = WeakIdKeyDictionary()
        self.live, self.phase, self.module, self.micro_batch = 0, "forward", "", 0
        self.regions: list[tuple[str, str]] = []
        self.compute = RecordedStream(self, COMPUTE)
        self.stream, self.streams = self.compute, 0

    # ---- what the recorded code sees

    def __enter__(self):
        self.stack = ExitStack()
        resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            if storage in self.pieces:
                self.account(self.pieces[storage], rounded(size))

        self.stack.enter_context(patch.object(torch.UntypedStorage, "resize_", resized))
        self.stack.enter_context(
            patch.multiple(
                torch.cpu,
                Stream=self.new_stream,
                Event=lambda *_args, **_options: RecordedEvent(self),
                stream=self.on_stream,
                current_stream=lambda *_: self.stream,
            )
        )
        return super().__enter__()

    def __exit__(self, *error):
        self.stack.close()
        return super().__exit__(*error)

    def new_stream(self, *_args, **_options) -> RecordedStream:
        # FSDP2 makes four, in this order (FSDPCommContext.lazy_init)
        names = ["gather copy-in", "all-gather", "reduce-scatter", "all-reduce"]
        self.streams += 1
        return RecordedStream(self, names[self.streams - 1] if self.streams <= 4 else f"stream {self.streams}")

    def on_stream(self, stream: RecordedStream):
        stack = ExitStack()
        before, self.stream = self.stream, stream
        stack.callback(setattr, self, "stream", before)
        return stack

    # ---- memory

    def own(self, tensors, category: str) -> None:
        """Count these tensors' storages as `category`, also those that were there before the recording."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
                self.piece(local, category).category = category

    def piece(self, tensor: Tensor, category: str) -> Piece:
        storage = tensor.untyped_storage()
        piece = self.pieces.get(storage)
        if piece is None:
            piece = self.pieces[storage] = Piece(category, self.stream.name)
            weakref.finalize(storage, self.account, piece, 0)
            self.account(piece, rounded(storage.nbytes()))
        return piece

    def account(self, piece: Piece, size: int) -> None:
        if size != piece.size:
            self.memory.append((len(self.ops), size - piece.size, piece))
            self.live += size - piece.size
            piece.size = size

    def category(self, vocabulary: bool) -> str:
        region = self.regions[-1][0] if self.regions else ""
        if "all_gather" in region or "prefetch" in region or self.stream.name in ("gather copy-in", "all-gather"):
            return "gathered weights"
        if "post_backward_reduce" in region:
            return "reduction buffers"
        if vocabulary and self.phase == "forward":
            return "head"
        return {"forward": "activations", "backward": "backward", "update": "update"}[self.phase]

    # ---- dispatch

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # what it does with its local tensors comes next
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in SYNCS:
            self.syncs.append(f"{func} in {self.phase} {self.module}".strip())
            if name == "_local_scalar_dense":
                return 1.0 if args[0].is_floating_point() else 1
        out = func(*args, **kwargs)
        if func.namespace == "profiler":
            self.enter_or_leave(name, args)
        elif name not in NO_KERNEL:
            self.launch(func, name, args, kwargs, out)
        elif isinstance(out, Tensor):
            self.piece(out, self.category(self.vocab_size in out.shape))
        return out

    def enter_or_leave(self, name: str, args: tuple) -> None:
        """FSDP2 names the stretches of its work: "FSDP::pre_forward (blocks.3)"."""
        if name == "_record_function_exit":
            if self.regions:
                self.module = self.regions[-1][1]
                left = self.regions.pop()[0]
                if left == "FSDP::root_post_backward_callback":
                    self.phase, self.module = "update", ""
            return
        label, _, module = str(args[0]).partition(" (")
        before = self.module
        if label == "FSDP::root_pre_forward":
            self.phase, before = "forward", ""
            self.micro_batch += 1
        if label in ("FSDP::pre_forward", "FSDP::pre_backward"):
            self.phase = label.removeprefix("FSDP::pre_")
            before = module.rstrip(")")  # from here on, not only within
        if label == "FSDP::post_forward":
            before = ""
        self.regions.append((label, before))

    def launch(self, func, name: str, args: tuple, kwargs: dict, out) -> None:
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(out)
        read_from, written_to = arguments(func, args, kwargs)
        known = {x.untyped_storage()._cdata for x in inputs}
        new = [x for x in outputs if x.untyped_storage()._cdata not in known]
        collective = func.namespace in ("c10d", "_c10d_functional") and name in COLLECTIVES
        if not (new or written_to or collective or name == "all_gather_copy_in"):
            return  # a view
        vocabulary = any(self.vocab_size in x.shape for x in inputs + new)
        category = self.category(vocabulary)
        for tensor in new:
            self.piece(tensor, category)
        if not ("out" in kwargs or name in OVERWRITE):
            read_from = read_from + written_to
        read = sum(map(size_of, {id(x): x for x in read_from}.values()))
        written = sum(map(size_of, new)) + sum(map(size_of, written_to))
        if name in LOOKUPS:
            read = written
        op = Op(name, "pointwise", self.phase, self.module, self.micro_batch, self.stream.name, (), read, written)
        op.sharding = func.namespace == "fsdp" or any("FSDP::" in region for region, _ in self.regions)
        op.vocabulary = vocabulary and "embedding" not in name
        if collective:
            describe_collective(op, args, kwargs)
        else:
            describe(op, args, outputs)
        op.inputs = tuple((self.piece(x, "inputs"), size_of(x)) for x in read_from)
        op.outputs = tuple((self.piece(x, category), size_of(x)) for x in new + written_to)
        op.waits, self.stream.pending = tuple(sorted(self.stream.pending)), set()
        self.stream.last = len(self.ops)
        op.live = self.live + op.workspace
        self.ops.append(op)


# ---- what is read off one operation


def rounded(size: int) -> int:
    return -(-size // ALLOCATION) * ALLOCATION


def size_of(tensor: Tensor) -> int:
    """Bytes that reading it takes: a broadcast dimension is read once."""
    return prod(n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 0) * (
        tensor.element_size()
    )


def tensors_in(tree) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def arguments(func, args: tuple, kwargs: dict) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that an operation takes, and those of them that it writes to, by its schema."""
    taken, written_to = [], []
    for i, argument in enumerate(func._schema.arguments):
        value = kwargs.get(argument.name) if argument.kwarg_only or i >= len(args) else args[i]
        writes = argument.alias_info is not None and argument.alias_info.is_write
        (written_to if writes else taken).extend(tensors_in(value))
    return taken, written_to


def describe_collective(op: Op, args: tuple, kwargs: dict) -> None:
    """Bytes read and written on this rank, and the ranks it reaches."""
    op.kind = COLLECTIVES[op.name]
    leaves = tree_leaves((args, kwargs))
    groups = [dist.ProcessGroup.unbox(x) for x in leaves if isinstance(x, torch.ScriptObject) and "Group" in str(x)]
    groups += [_resolve_process_group(x) for x in leaves if isinstance(x, str) and x in _world.pg_names.values()]
    op.shape = tuple(dist.get_process_group_ranks(groups[0]))
    sizes = sorted(size_of(x) for x in leaves if isinstance(x, Tensor))
    op.read = sizes[-1] if op.kind == "reduce_scatter" else sizes[0]
    op.written = sizes[-1] if op.kind == "all_gather" else sizes[0]
    if len(sizes) == 1 and op.kind != "all_reduce":  # functional: the other tensor is returned
        op.read, op.written = (
            (sizes[0], sizes[0] * len(op.shape)) if op.kind == "all_gather" else (sizes[0], sizes[0] // len(op.shape))
        )


def describe(op: Op, args: tuple, outputs: list[Tensor]) -> None:
    """The kind of operation, its shape and FLOPs."""
    if op.name in PRODUCTS:
        a, b = args[1:3] if op.name in ("addmm", "baddbmm") else args[:2]
        batch = a.shape[0] if a.ndim == 3 else 1
        op.kind, op.shape = "product", (a.shape[-2], b.shape[-1], a.shape[-1], batch)
        op.flops = 2 * prod(op.shape)
    elif "attn" in op.name or "attention" in op.name:
        attention_op(op, [x for x in tensors_in(args) if x.ndim >= 3])
    elif op.name in NOTES:
        NOTES[op.name](op, args, outputs)


def attention_op(op: Op, tensors: list[Tensor]) -> None:
    """FlashAttention on rows laid end to end [T, N, H], or on a batch [B, N, S, H]. FLOPs depend on document lengths
    and are counted in cost.py.

    The backward keeps dq in fp32, and with grouped heads writes dk and dv for every query head before it sums them
    (flash_api.cpp, mha_varlen_bwd: dq_accum, dk_expanded, dv_expanded).
    """
    backward = "backward" in op.name
    q, k = tensors[1:3] if backward else tensors[:2]
    if q.ndim == 4:
        op.shape = (q.shape[0] * q.shape[2], q.shape[1], k.shape[1], q.shape[3])
    else:
        op.shape = (q.shape[0], q.shape[1], k.shape[1], q.shape[2])
    op.kind = "attention"
    if backward:
        heads = prod((op.shape[0], op.shape[1], op.shape[3]))
        grouped = 2 * heads * q.element_size() if op.shape[1] != op.shape[2] else 0
        op.workspace = 4 * heads + grouped
        op.launches = 3 + 2 * bool(grouped)  # dO . O, the kernel, dq's conversion; two sums


def rope_in_place(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    qkv, num_heads, num_kv_heads = args[0], args[3], args[4]
    turned = size_of(qkv) * (num_heads + num_kv_heads) // qkv.shape[1]  # values stay as they are
    op.read, op.written = turned + size_of(args[1]) + size_of(args[2]), turned


def softmax_gradient(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """A row of logits (256 KiB) is read for its sum and again for the gradient, and 4 x 132 rows do not fit L2."""
    op.read += size_of(args[0]) if args[2] else 0


def norm_backward(op: Op, _args: tuple, outputs: list[Tensor]) -> None:
    """The weight's gradient is summed per program in fp32, then over programs."""
    partial = 4 * 264 * outputs[1].numel()
    op.read, op.written, op.launches = op.read + partial, op.written + partial, 3


def dense_embedding_gradient(op: Op, args: tuple, outputs: list[Tensor]) -> None:
    """Zeroes the whole gradient, sorts the ids, adds the rows that occur."""
    rows = size_of(args[0])
    op.read, op.written, op.launches = 2 * rows, size_of(outputs[0]) + rows, 6


def gather_copy_in(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """This rank's shards to their place in the gathered buffer; its schema does not say that it writes."""
    op.read = op.written = sum(map(size_of, args[0]))


def fused_adamw(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """Reads weights, gradients and both moments and writes all but the gradients (the schema lists these too)."""
    op.written -= sum(map(size_of, args[1]))


NOTES = {
    "all_gather_copy_in": gather_copy_in,
    "_fused_adamw_": fused_adamw,
    "rope_": rope_in_place,
    "softmax_gradient_": softmax_gradient,
    "rms_norm_backward": norm_backward,
    "embedding_dense_backward": dense_embedding_gradient,
}


def reserved(recorder: Recorder, first_op: int = 0) -> int:
    """Bytes that the caching allocator takes from the GPU from operation `first_op` on, with expandable segments: each
    stream has an address range of its own; a tensor takes the smallest free piece of it that is large enough, or
    extends it, and what was taken is not given back. What is alive at `first_op` lies end to end.
    """
    pools: dict[tuple[str, bool], Pool] = {}
    at: dict[Piece, int] = {}
    size: dict[Piece, int] = {}

    def place(piece: Piece) -> None:
        at[piece] = pools.setdefault((piece.stream, size[piece] <= SMALL), Pool()).allocate(size[piece])

    before = [event for event in recorder.memory if event[0] < first_op]
    for _, change, piece in before:
        size[piece] = size.get(piece, 0) + change
    for piece in [piece for piece, held in size.items() if held]:
        place(piece)
    for _, change, piece in recorder.memory[len(before) :]:
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


@dataclass
class Peak:
    """The moment at which most memory is alive."""

    total: int
    by_category: dict[str, int] = field(default_factory=dict)
    op: int = 0
    reserved: int = 0  # by the allocator, for all of them and the gaps between


def peak(recorder: Recorder, first_op: int = 0) -> Peak:
    """Largest total from operation `first_op` on, by category; the workspace of a kernel counts while it runs."""
    alive: dict[str, int] = {}
    best, total, events = Peak(-1), 0, iter(recorder.memory)
    event = next(events, None)
    for number in range(len(recorder.ops) + 1):
        while event is not None and event[0] <= number:
            alive[event[2].category] = alive.get(event[2].category, 0) + event[1]
            total += event[1]
            event = next(events, None)
            if number >= first_op and total > best.total:
                best = Peak(total, dict(alive), number)
        if first_op <= number < len(recorder.ops):
            workspace = recorder.ops[number].workspace
            if total + workspace > best.total:
                best = Peak(total + workspace, {**alive, "kernel workspace": workspace}, number)
    best.reserved = reserved(recorder, first_op)
    best.by_category = {name: size for name, size in best.by_category.items() if size}
    return best
