"""One dispatched operation: the kind of its kernel, the bytes it reads and writes, and its FLOPs.

Sizes come from the tensors and from the operation's schema. The inside of a custom or composite operation is not
dispatched. For our own operations their files export the costs (`COSTS` of logtrain_kernels); for PyTorch's NOTES has
them, with the source that they were read in.
"""

from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _world
from torch.utils._pytree import tree_leaves

from logtrain.model import recompute
from logtrain_kernels import COSTS, Cost, attention_cost

COMPUTE = "compute"  # the stream of the model's own kernels
PRODUCTS = {*recompute.PRODUCTS, "bmm", "baddbmm"}
COLLECTIVE_OPS = {
    "_allgather_base_": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "allreduce_": "all_reduce",
    "all_reduce": "all_reduce",
    "broadcast_": "broadcast",
}
COLLECTIVES = ("all_gather", "reduce_scatter", "all_reduce", "broadcast")


@dataclass(slots=True, eq=False)
class Storage:
    """A storage of the recorded program."""

    category: str
    """What the memory is for."""
    stream: str
    """Name of the stream whose memory pool it came from."""
    size: int = 0
    """Bytes that it has now."""


@dataclass(slots=True)
class Op:
    """One dispatched operation, which is usually one kernel."""

    name: str
    """Name of the operation in PyTorch, without its namespace."""
    kind: str
    """One of product, attention and pointwise, or a collective of COLLECTIVES."""
    phase: str
    """One of forward, backward and update."""
    module: str
    """Unit of FSDP2 whose forward or backward is running, by its path in the model."""
    micro_batch: int
    """Number of the micro-batch in its step, counted from 1."""
    stream: str
    """Name of the stream that it runs on."""
    waits: tuple[int, ...]
    """Numbers of the operations on other streams that must have ended."""
    read: int
    """Bytes that it reads."""
    written: int
    """Bytes that it writes."""
    flops: int = 0
    """FLOPs of a product; those of attention depend on the documents and are counted in cost.py."""
    shape: tuple[int, ...] = ()
    """Of a product M, N, K and batch; of attention T, N, K and H; of a collective the ranks of its group."""
    launches: int = 1
    """Number of kernels."""
    workspace: int = 0
    """Bytes that are alive only while it runs."""
    sharding: bool = False
    """Whether it is a copy of FSDP2's own, before or after a collective."""
    vocabulary: bool = False
    """Whether a dimension of its tensors is the vocabulary's."""
    live: int = 0
    """Bytes that are alive when it has run, and its workspace."""
    inputs: tuple[tuple[Storage, int], ...] = ()
    """Storages that it reads, with the number of bytes."""
    outputs: tuple[tuple[Storage, int], ...] = ()
    """Storages that it writes, with the number of bytes."""


def size_of(tensor: Tensor) -> int:
    """Bytes that reading a tensor, of any shape and any dtype, takes; a broadcast dimension is read once."""
    return prod(n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 0) * (
        tensor.element_size()
    )


def tensors_in(tree) -> list[Tensor]:
    """All tensors in a tree of tuples, lists and dictionaries."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def arguments(func, args: tuple, kwargs: dict) -> tuple[list[Tensor], list[Tensor]]:
    """(the tensors that an operation only reads, those that it writes to), by its schema."""
    taken, written_to = [], []
    for i, argument in enumerate(func._schema.arguments):
        value = kwargs.get(argument.name) if argument.kwarg_only or i >= len(args) else args[i]
        writes = argument.alias_info is not None and argument.alias_info.is_write
        (written_to if writes else taken).extend(tensors_in(value))
    return taken, written_to


def describe_collective(op: Op, args: tuple, kwargs: dict) -> None:
    """Set kind, ranks, and the bytes read and written on this rank."""
    op.kind = COLLECTIVE_OPS[op.name]
    leaves = tree_leaves((args, kwargs))
    groups = [dist.ProcessGroup.unbox(x) for x in leaves if isinstance(x, torch.ScriptObject) and "Group" in str(x)]
    groups += [group for x in leaves if isinstance(x, str) for group, name in _world.pg_names.items() if name == x]
    op.shape = tuple(dist.get_process_group_ranks(groups[0]))
    sizes = sorted(size_of(x) for x in leaves if isinstance(x, Tensor))
    op.read = sizes[-1] if op.kind == "reduce_scatter" else sizes[0]
    op.written = sizes[-1] if op.kind == "all_gather" else sizes[0]
    if len(sizes) == 1 and op.kind != "all_reduce":  # functional: the other tensor is returned
        op.read, op.written = (
            (sizes[0], sizes[0] * len(op.shape)) if op.kind == "all_gather" else (sizes[0], sizes[0] // len(op.shape))
        )


def describe(op: Op, args: tuple, outputs: list[Tensor]) -> None:
    """Set kind, shape, FLOPs and whatever else is known of an operation that is no collective."""
    if op.name in PRODUCTS:
        a, b = args[1:3] if op.name in ("addmm", "addmm_", "baddbmm") else args[:2]
        batch = a.shape[0] if a.ndim == 3 else 1
        op.kind, op.shape = "product", (a.shape[-2], b.shape[-1], a.shape[-1], batch)
        op.flops = 2 * prod(op.shape)
    elif "attn" in op.name or "attention" in op.name:
        attention_op(op, [x for x in tensors_in(args) if x.ndim >= 3])
    elif op.name in COSTS:
        kernel_op(op, COSTS[op.name](*args))
    elif op.name in NOTES:
        NOTES[op.name](op, args, outputs)


def attention_op(op: Op, tensors: list[Tensor]) -> None:
    """Describe FlashAttention on rows laid end to end [T, N, H], or on a batch [B, N, S, H]."""
    backward = "backward" in op.name
    q, k = tensors[1:3] if backward else tensors[:2]
    kernel_op(op, attention_cost(q, k, backward))
    rows = q.shape[0] if q.ndim == 3 else q.shape[0] * q.shape[2]
    op.kind, op.shape = "attention", (rows, q.shape[1], k.shape[1], q.shape[-1])


def kernel_op(op: Op, cost: Cost) -> None:
    """Describe an operation of logtrain_kernels by the costs that its file exports."""
    op.read, op.written, op.launches, op.workspace = cost.read, cost.written, cost.launches, cost.workspace
    if cost.product:
        op.kind, op.shape, op.flops = "product", cost.product, cost.flops


def dense_embedding_gradient(op: Op, args: tuple, outputs: list[Tensor]) -> None:
    """The gradient of an embedding, which zeroes the whole matrix, sorts the ids and adds the rows that occur."""
    rows = size_of(args[0])
    op.read, op.written, op.launches = 2 * rows, size_of(outputs[0]) + rows, 6


def logsumexp(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """A log-sum-exp, which stores exp(x - max) while it sums (ReduceOps.cpp, logsumexp_out_impl)."""
    op.workspace = size_of(args[0])


def gather_copy_in(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """The copy of this rank's shards into the gathered buffer, of which the schema does not say that it writes."""
    op.read = op.written = sum(map(size_of, args[0]))


def fused_adamw(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """AdamW, which writes weights and moments but not the gradients, although the schema lists these as written."""
    op.written -= sum(map(size_of, args[1]))


NOTES = {
    "logsumexp": logsumexp,
    "all_gather_copy_in": gather_copy_in,
    "_fused_adamw_": fused_adamw,
    "embedding_dense_backward": dense_embedding_gradient,
}
