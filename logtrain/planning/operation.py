"""One operation as it was dispatched: what kind of kernel it is, what it reads and writes, how much it computes.

Sizes come from the tensors and from the operation's schema. What a custom or composite operation does inside is not
dispatched: of our own their files say it (`COSTS` of logtrain_kernels), of PyTorch's NOTES does, with the source it was
read in.
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
    inputs: tuple[tuple[Storage, int], ...] = ()  # storages that it reads, with the bytes of them
    outputs: tuple[tuple[Storage, int], ...] = ()


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
    """The kind of operation, its shape and FLOPs."""
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
    """FlashAttention on rows laid end to end [T, N, H], or on a batch [B, N, S, H]. FLOPs depend on document lengths
    and are counted in cost.py.
    """
    backward = "backward" in op.name
    q, k = tensors[1:3] if backward else tensors[:2]
    kernel_op(op, attention_cost(q, k, backward))
    rows = q.shape[0] if q.ndim == 3 else q.shape[0] * q.shape[2]
    op.kind, op.shape = "attention", (rows, q.shape[1], k.shape[1], q.shape[-1])


def kernel_op(op: Op, cost: Cost) -> None:
    """An operation of logtrain_kernels, whose file says what it costs."""
    op.read, op.written, op.launches, op.workspace = cost.read, cost.written, cost.launches, cost.workspace
    if cost.product:
        op.kind, op.shape, op.flops = "product", cost.product, cost.flops


def dense_embedding_gradient(op: Op, args: tuple, outputs: list[Tensor]) -> None:
    """Zeroes the whole gradient, sorts the ids, adds the rows that occur."""
    rows = size_of(args[0])
    op.read, op.written, op.launches = 2 * rows, size_of(outputs[0]) + rows, 6


def logsumexp(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """exp(x - max) is a tensor of its own while it is summed (ReduceOps.cpp, logsumexp_out_impl)."""
    op.workspace = size_of(args[0])


def gather_copy_in(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """This rank's shards to their place in the gathered buffer; its schema does not say that it writes."""
    op.read = op.written = sum(map(size_of, args[0]))


def fused_adamw(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """Reads weights, gradients and both moments and writes all but the gradients (the schema lists these too)."""
    op.written -= sum(map(size_of, args[1]))


NOTES = {
    "logsumexp": logsumexp,
    "all_gather_copy_in": gather_copy_in,
    "_fused_adamw_": fused_adamw,
    "embedding_dense_backward": dense_embedding_gradient,
}
