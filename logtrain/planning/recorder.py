"""Records what a program would do on a GPU while it runs on tensors without contents: every kernel in order, the
stream it is on, what it waits for, its FLOPs and memory traffic, and which memory is alive at every moment.

    with FakeTensorMode(), Recorder() as recorder:
        model(x).backward()
    recorder.ops, recorder.memory

Nothing is modelled: the operations are those that PyTorch dispatches, and the streams and events those that FSDP2
uses. On the pretended "cpu" device FSDP2 asks `torch.cpu` for streams; the recorder puts its own there.
"""

import weakref
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from logtrain.planning.operation import (
    COLLECTIVE_OPS,
    COMPUTE,
    Op,
    Piece,
    arguments,
    describe,
    describe_collective,
    size_of,
    tensors_in,
)

ALLOCATION = 512  # bytes: what the caching allocator rounds up to
OVERWRITE = {"copy_", "_foreach_copy_", "fill_", "zero_", "all_gather_copy_in"}  # their target is written, not read
LOOKUPS = {"embedding", "index", "index_select", "gather"}  # read what they return, not the whole table
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "device", "lift_fresh", "detach"}
NO_KERNEL |= {"_record_function_enter_new", "_record_function_exit", "wait_tensor", "barrier", "sym_size", "set_data"}
SYNCS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_consecutive"}


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
        collective = func.namespace in ("c10d", "_c10d_functional") and name in COLLECTIVE_OPS
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


def rounded(size: int) -> int:
    return -(-size // ALLOCATION) * ALLOCATION
