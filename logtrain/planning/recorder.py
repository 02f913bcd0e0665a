"""Records the work of a program on a GPU while the program runs on tensors without contents: every kernel in order, its
stream, the kernels it waits for, its FLOPs and memory traffic, and the memory that is alive at every moment.

    with FakeTensorMode(), Recorder() as recorder:
        model(x).backward()
    recorder.ops, recorder.memory

Nothing is modelled: the operations are those that PyTorch dispatches, and the streams and events those that FSDP2
uses. On the pretended "cpu" device FSDP2 asks `torch.cpu` for streams, where the recorder puts its own.
"""

import weakref
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from logtrain.model.float8 import GatheredWeight, SharedWeight, held
from logtrain.planning.memory import MemoryEvent
from logtrain.planning.operation import (
    COLLECTIVE_OPS,
    COMPUTE,
    Op,
    Storage,
    arguments,
    describe,
    describe_collective,
    size_of,
    tensors_in,
)

ALLOCATION = 512  # bytes to a multiple of which the caching allocator rounds sizes up
OVERWRITE = {
    "copy_",
    "_foreach_copy_",
    "fill_",
    "zero_",
    "all_gather_copy_in",
}  # operations that write their target without reading it
LOOKUPS = {"embedding", "index", "index_select", "gather"}  # operations that read only the rows that they return
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "device", "lift_fresh", "detach"}
NO_KERNEL |= {"_record_function_enter_new", "_record_function_exit", "wait_tensor", "barrier", "sym_size", "set_data"}
SYNCS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_consecutive"}
WITHOUT_MEMORY = (DTensor, SharedWeight, GatheredWeight)


class RecordedStream:
    """A stream of the pretended GPU, in place of torch.cpu.Stream."""

    def __init__(self, recorder: "Recorder", name: str):
        self.recorder, self.name = recorder, name
        self.last: int | None = None  # number of the operation that was launched last
        self.pending: set[int] = set()  # operations of other streams that the next one waits for

    def record_event(self) -> "RecordedEvent":
        """An event after the operation that was launched last."""
        return RecordedEvent(self.recorder).record(self)

    def wait_event(self, event: "RecordedEvent") -> None:
        """Let the next operation on this stream wait for an event."""
        if event.op is not None:
            self.pending.add(event.op)

    def wait_stream(self, other: "RecordedStream") -> None:
        """Let the next operation on this stream wait for the last one of another."""
        self.wait_event(other.record_event())


class RecordedEvent:
    """The last operation on a stream when the event was recorded, in place of torch.cpu.Event."""

    def __init__(self, recorder: "Recorder"):
        self.recorder = recorder
        self.op: int | None = None

    def record(self, stream: RecordedStream | None = None) -> "RecordedEvent":
        """Move the event after the last operation on a stream, by default on the current one."""
        self.op = (stream or self.recorder.stream).last
        return self


class Recorder(TorchDispatchMode):
    """A context that records the operations of the code within it, and the memory they take. ops: the operations in
    order. memory: the changes of storages in order. syncs: the operations that the host waited for, in words.
    """

    def __init__(self, vocab_size: int = 0):
        """`vocab_size`: the size of the dimension by which operations of the head are known."""
        super().__init__()
        self.vocab_size = vocab_size
        self.ops: list[Op] = []
        self.syncs: list[str] = []
        self.memory: list[MemoryEvent] = []
        self.storages = WeakIdKeyDictionary()  # {torch.UntypedStorage: Storage}
        self.bytes_alive, self.phase, self.module, self.micro_batch = 0, "forward", "", 0
        self.regions: list[tuple[str, str]] = []  # FSDP2's work under way: (its label, the module to go back to)
        self.compute = RecordedStream(self, COMPUTE)
        self.stream, self.num_streams = self.compute, 0

    def begin_step(self) -> int:
        """Count micro-batches anew; -> the number of the step's first operation."""
        self.phase, self.micro_batch = "forward", 0
        return len(self.ops)

    # ---- what the recorded code sees

    def __enter__(self):
        self.stack = ExitStack()
        resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            if storage in self.storages:
                self.resize(self.storages[storage], rounded(size))

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
        """A new stream, in place of torch.cpu.Stream. FSDP2 makes four, in this order (FSDPCommContext.lazy_init)."""
        names = ["gather copy-in", "all-gather", "reduce-scatter", "all-reduce"]
        self.num_streams += 1
        number = self.num_streams
        return RecordedStream(self, names[number - 1] if number <= len(names) else f"stream {number}")

    def on_stream(self, stream: RecordedStream) -> ExitStack:
        """Let operations go to `stream` until the returned context ends, in place of torch.cpu.stream."""
        stack = ExitStack()
        before, self.stream = self.stream, stream
        stack.callback(setattr, self, "stream", before)
        return stack

    # ---- memory

    def categorize(self, tensors: Any, category: str) -> None:
        """Set the category of the storages of all tensors in a tree, also of those older than the recording."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                local = held(tensor._local_tensor if isinstance(tensor, DTensor) else tensor)
                self.record_storage(local, category).category = category

    def record_storage(self, tensor: Tensor, category: str) -> Storage:
        """The record of a tensor's storage, which is made, with this category, if there is none."""
        storage = tensor.untyped_storage()
        recorded = self.storages.get(storage)
        if recorded is None:
            recorded = self.storages[storage] = Storage(category, self.stream.name)
            weakref.finalize(storage, self.resize, recorded, 0)
            self.resize(recorded, rounded(storage.nbytes()))
        return recorded

    def resize(self, recorded: Storage, size: int) -> None:
        """Record that a storage has `size` bytes from here on; a freed one has 0."""
        change = size - recorded.size
        if change:
            self.memory.append(MemoryEvent(len(self.ops), change, recorded))
            self.bytes_alive += change
            recorded.size = size

    def category(self, vocabulary: bool) -> str:
        """The category of memory that is allocated now. `vocabulary`: whether a dimension is the vocabulary's."""
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
        if any(issubclass(t, WITHOUT_MEMORY) for t in types):
            return NotImplemented  # they dispatch again with the tensors that they hold
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
            self.record_storage(out, self.category(self.vocab_size in out.shape))
        return out

    def enter_or_leave(self, name: str, args: tuple) -> None:
        """Follow FSDP2 by the labels of its work, such as "FSDP::pre_forward (blocks.3)"."""
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

    def launch(self, func: OpOverload, name: str, args: tuple, kwargs: dict, out: Any) -> None:
        """Record an operation that has returned `out`, unless it is a view."""
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(out)
        read_from, written_to = arguments(func, args, kwargs)
        known = {x.untyped_storage()._cdata for x in inputs}
        new = [x for x in outputs if x.untyped_storage()._cdata not in known]
        collective = func.namespace in ("c10d", "_c10d_functional") and name in COLLECTIVE_OPS
        if not (new or written_to or collective or name == "all_gather_copy_in"):
            return
        vocabulary = any(self.vocab_size in x.shape for x in inputs + new)
        category = self.category(vocabulary)
        for tensor in new:
            self.record_storage(tensor, category)
        if not ("out" in kwargs or name in OVERWRITE):
            read_from = read_from + written_to
        written = sum(map(size_of, new)) + sum(map(size_of, written_to))
        read = written if name in LOOKUPS else sum(map(size_of, {id(x): x for x in read_from}.values()))
        op = Op(
            name=name,
            kind="pointwise",
            phase=self.phase,
            module=self.module,
            micro_batch=self.micro_batch,
            stream=self.stream.name,
            waits=tuple(sorted(self.stream.pending)),
            read=read,
            written=written,
            sharding=func.namespace == "fsdp" or any("FSDP::" in region for region, _ in self.regions),
            vocabulary=vocabulary and "embedding" not in name,
        )
        if collective:
            describe_collective(op, args, kwargs)
        else:
            describe(op, args, outputs)
        op.inputs = tuple((self.record_storage(x, "inputs"), size_of(x)) for x in read_from)
        op.outputs = tuple((self.record_storage(x, category), size_of(x)) for x in new + written_to)
        self.stream.pending, self.stream.last = set(), len(self.ops)
        op.live = self.bytes_alive + op.workspace
        self.ops.append(op)


def rounded(size: int) -> int:
    """Bytes that the caching allocator takes for a tensor of `size` bytes."""
    return -(-size // ALLOCATION) * ALLOCATION
