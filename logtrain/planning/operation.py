"""One operation as it was dispatched: what kind of kernel it is, what it reads and writes, how much it computes.

Sizes come from the tensors and from the operation's schema. What a custom or composite operation does inside is not
dispatched: NOTES says it, with the source it was read in.
"""

from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group, _world
from torch.utils._pytree import tree_leaves

COMPUTE = "compute"  # the stream of the model's own kernels
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm"}
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
        a, b = args[1:3] if op.name in ("addmm", "addmm_", "baddbmm") else args[:2]
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


def dropped_linear(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """A product as long as reading x takes."""
    (T, D), R = args[0].shape, len(args[1])
    op.kind, op.shape, op.flops = "product", (T, R, D, 1), 2 * T * R * D


def dropped_linear_backward(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """The masked product for dx, unless nobody wants it, and dA, which is summed in fp32 in parts of the tokens
    (`parts` in dropped_linear.py, on 132 processors).
    """
    (T, R), D, products = args[0].shape, args[1].shape[1], 1 + args[6]
    programs = -(-D // 64)
    parts = max(1, 2 * 132 // programs, min(T // (40 * R), -(-8 * 132 // programs)))
    partial = 4 * R * D * min(parts, -(-T // 64))
    op.read, op.written, op.launches = op.read + partial, op.written + partial, 2
    op.kind, op.shape, op.flops = "product", (R, D, T, products), products * 2 * T * R * D


def adapter_outputs(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """A product for each adapter: its part of h with its B, written to its columns."""
    T, (columns, r), adapters = len(args[0]), args[1].shape, len(args[2]) // 6
    op.kind, op.shape, op.flops, op.launches = "product", (T, columns, r, 1), 2 * T * columns * r, adapters


def adapter_outputs_backward(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """Two products for each adapter: both read its columns of dy."""
    T, (columns, r), adapters = len(args[1]), args[2].shape, len(args[3]) // 6
    op.kind, op.shape, op.flops, op.launches = "product", (T, r, columns, 2), 4 * T * columns * r, 2 * adapters
    op.read += T * columns * args[0].element_size()


def rope_in_place(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    qkv, num_heads, num_kv_heads = args[0], args[3], args[4]
    turned = size_of(qkv) * (num_heads + num_kv_heads) // qkv.shape[1]  # values stay as they are
    op.read, op.written = turned + size_of(args[1]) + size_of(args[2]), turned


def softmax_gradient(op: Op, args: tuple, _outputs: list[Tensor]) -> None:
    """A row of logits (256 KiB) is read for its sum and again for the gradient, and 4 x 132 rows do not fit L2."""
    op.read += size_of(args[0]) if args[2] else 0


def norm_backward(op: Op, args: tuple, outputs: list[Tensor]) -> None:
    """The weight's gradient, if it is wanted, is summed per program in fp32, then over programs."""
    partial = 4 * 264 * outputs[1].numel()
    op.read, op.written, op.launches = op.read + partial, op.written + partial, 3 if args[5] else 1


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
    "adapter_outputs": adapter_outputs,
    "adapter_outputs_backward": adapter_outputs_backward,
    "dropped_linear": dropped_linear,
    "dropped_linear_backward": dropped_linear_backward,
    "rope_": rope_in_place,
    "softmax_gradient_": softmax_gradient,
    "rms_norm_backward": norm_backward,
    "embedding_dense_backward": dense_embedding_gradient,
}
