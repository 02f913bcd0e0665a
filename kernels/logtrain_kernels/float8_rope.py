"""The gradient of what `rope` takes, in float8, tensorwise: turned back, joined and cast without writing it in higher
precision.

    d = (turned back dq, turned back dk, dv) [T, (N + 2K) H]        q = round(d m)

Two looks at dq, dk and dv: one for the largest element of d, one that computes all of them again and casts them. They
are rounded to the inputs' dtype before they are cast, so that float8 numbers are bit by bit those of the two operations
one after the other.

Shapes in names: T tokens, N query heads, K key-value heads, H head size, H2 half of it, O = (N + 2K) H.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logtrain_kernels.cost import Cost, nbytes
from logtrain_kernels.device import uses_triton
from logtrain_kernels.float8_bits import e4m3, magnitude
from logtrain_kernels.float8_pair import (
    Float8Pair,
    largest_cost,
    largest_reference,
    new_pair,
    pair_bits,
    pair_reference,
    scale_of,
    store_tile,
)
from logtrain_kernels.language import constexpr
from logtrain_kernels.rope import rope_backward_op, rope_launch, turned_pairs


def joined(dq_TNH: Tensor, dk_TKH: Tensor, dv_TKH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor) -> Tensor:
    """-> d [T, O], by the operation that writes it"""
    return rope_backward_op(dq_TNH, dk_TKH, dv_TKH, cos_TH2, sin_TH2).flatten(1)


# ---- Triton: the first look, of a token for each program


@triton.jit
def largest_of_heads(
    x_NH, cos, sin, NUM: constexpr, HALF: constexpr, TURN: constexpr, HEADS: constexpr, PAIRS: constexpr
):
    """-> the bits of the largest element of NUM heads of one token"""
    pair = tl.arange(0, PAIRS)[None, :]
    largest = tl.zeros((HEADS, PAIRS), dtype=tl.int32)
    for first in tl.range(0, NUM, HEADS):  # pyright: ignore[reportGeneralTypeIssues]
        head = first + tl.arange(0, HEADS)[:, None]
        inside = (head < NUM) & (pair < HALF)
        a, b = turned_pairs(x_NH, head * 2 * HALF + pair, inside, cos, sin, HALF, TURN)
        of_both = tl.maximum(magnitude(a.to(tl.float32)), magnitude(b.to(tl.float32)))
        largest = tl.maximum(largest, of_both)
    return tl.max(largest)


@triton.jit
def rope_backward_largest(
    dq_TNH, dk_TKH, dv_TKH, cos_TH2, sin_TH2, largest_T,
    N: constexpr, K: constexpr, HALF: constexpr, HEADS: constexpr, PAIRS: constexpr,
):  # fmt: skip
    """Gives the bits of the largest element of d of one token."""
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, PAIRS)[None, :]
    cos = tl.load(cos_TH2 + token * HALF + pair, mask=pair < HALF, other=0.0)
    sin = -tl.load(sin_TH2 + token * HALF + pair, mask=pair < HALF, other=0.0)
    of_q = largest_of_heads(dq_TNH + token * N * 2 * HALF, cos, sin, N, HALF, True, HEADS, PAIRS)
    of_k = largest_of_heads(dk_TKH + token * K * 2 * HALF, cos, sin, K, HALF, True, HEADS, PAIRS)
    of_v = largest_of_heads(dv_TKH + token * K * 2 * HALF, cos, sin, K, HALF, False, HEADS, PAIRS)
    tl.store(largest_T + token, tl.maximum(tl.maximum(of_q, of_k), of_v))


# ---- Triton: the second, of ROWS tokens and HEADS heads for each program, whose angles are read once


@triton.jit
def cast_head_tiles(
    dq_TNH, dk_TKH, dv_TKH, cos_TH2, sin_TH2, largest, values_TO, values_OT, inverse, T,
    N: constexpr, K: constexpr, HALF: constexpr, STRAIGHT: constexpr, TRANSPOSED: constexpr,
    ROWS: constexpr, HEADS: constexpr, PAIRS: constexpr,
):  # fmt: skip
    """Casts the two halves of each head."""
    row, pair = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, PAIRS)
    inside = (row < T)[:, None] & (pair < HALF)[None, :]
    angle = row[:, None] * HALF + pair[None, :]
    cos = tl.load(cos_TH2 + angle, mask=inside, other=0.0)
    sin = -tl.load(sin_TH2 + angle, mask=inside, other=0.0)
    m = scale_of(largest, inverse)
    width: constexpr = 2 * HALF
    of_q, of_k = row[:, None] * (N * width) + pair[None, :], row[:, None] * (K * width) + pair[None, :]
    first = tl.program_id(0) * HEADS
    for head in tl.range(first, tl.minimum(first + HEADS, N + 2 * K)):  # pyright: ignore[reportGeneralTypeIssues]
        if head < N:
            a, b = turned_pairs(dq_TNH, of_q + head * width, inside, cos, sin, HALF, True)
        elif head < N + K:
            a, b = turned_pairs(dk_TKH, of_k + (head - N) * width, inside, cos, sin, HALF, True)
        else:
            a, b = turned_pairs(dv_TKH, of_k + (head - N - K) * width, inside, cos, sin, HALF, False)
        column, columns = head * width + pair, (N + 2 * K) * width
        q = e4m3(a.to(tl.float32) * m)
        store_tile(q, values_TO, values_OT, row, column, T, head * width + HALF, columns, STRAIGHT, TRANSPOSED)
        q = e4m3(b.to(tl.float32) * m)
        store_tile(q, values_TO, values_OT, row, column + HALF, T, head * width + width, columns, STRAIGHT, TRANSPOSED)


HEADS_AT_ONCE = 24  # of a program: of 48 heads the angles are read twice, and 8,192 tokens have 256 programs


def head_tile_launch(half: int) -> dict[str, int]:
    """Launch parameters of the second look: a thread has 16 elements of each half, as stores of 16 bytes ask."""
    pairs = triton.next_power_of_2(half)
    return {"ROWS": max(16, 4096 // pairs), "HEADS": HEADS_AT_ONCE, "PAIRS": pairs, "num_warps": 8}


# ---- registered operations


@torch.library.custom_op("logtrain::rope_backward_largest", mutates_args=())
def rope_backward_largest_op(
    dq_TNH: Tensor, dk_TKH: Tensor, dv_TKH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor
) -> Tensor:
    """-> the bits of the largest |d|, int32 []"""
    (T, N, H), K = dq_TNH.shape, dk_TKH.shape[1]
    if not uses_triton(dq_TNH) or not T:
        return largest_reference(joined(dq_TNH, dk_TKH, dv_TKH, cos_TH2, sin_TH2))
    gradients = dq_TNH.contiguous(), dk_TKH.contiguous(), dv_TKH.contiguous()
    tensors = *gradients, cos_TH2.contiguous(), sin_TH2.contiguous()
    largest_T = dq_TNH.new_empty(T, dtype=torch.int32)
    rope_backward_largest[(T,)](*tensors, largest_T, N=N, K=K, HALF=H // 2, **rope_launch(H // 2))
    return largest_T.amax()


@rope_backward_largest_op.register_fake
def _(dq_TNH: Tensor, dk_TKH: Tensor, dv_TKH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor) -> Tensor:
    return dq_TNH.new_empty((), dtype=torch.int32)


@torch.library.custom_op("logtrain::rope_backward_pair", mutates_args=())
def rope_backward_pair_op(
    dq_TNH: Tensor, dk_TKH: Tensor, dv_TKH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor,
    largest: Tensor, straight: bool, transposed: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """-> a `Float8Pair` of d, whose largest element has these bits"""
    (T, N, H), K = dq_TNH.shape, dk_TKH.shape[1]
    if not uses_triton(dq_TNH):
        return pair_reference(joined(dq_TNH, dk_TKH, dv_TKH, cos_TH2, sin_TH2), largest, straight, transposed)
    gradients = dq_TNH.contiguous(), dk_TKH.contiguous(), dv_TKH.contiguous()
    tensors = *gradients, cos_TH2.contiguous(), sin_TH2.contiguous()
    pair = new_pair(dq_TNH, (T, (N + 2 * K) * H), straight, transposed)
    launch, ways = head_tile_launch(H // 2), {"STRAIGHT": straight, "TRANSPOSED": transposed}
    grid = triton.cdiv(N + 2 * K, launch["HEADS"]), max(1, triton.cdiv(T, launch["ROWS"]))
    cast_head_tiles[grid](*tensors, largest, *pair_bits(pair), T, N=N, K=K, HALF=H // 2, **ways, **launch)
    return pair


@rope_backward_pair_op.register_fake
def _(dq_TNH, dk_TKH, dv_TKH, cos_TH2, sin_TH2, largest, straight: bool, transposed: bool) -> Float8Pair:
    (T, N, H), K = dq_TNH.shape, dk_TKH.shape[1]
    return new_pair(dq_TNH, (T, (N + 2 * K) * H), straight, transposed)


# ---- what the operations cost


def rope_backward_largest_cost(
    dq_TNH: Tensor, dk_TKH: Tensor, dv_TKH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor
) -> Cost:
    """The cost of `rope_backward_largest_op`."""
    return largest_cost(nbytes(dq_TNH, dk_TKH, dv_TKH, cos_TH2, sin_TH2), 4 * len(dq_TNH))


def rope_backward_pair_cost(
    dq_TNH: Tensor, dk_TKH: Tensor, dv_TKH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor,
    largest: Tensor, straight: bool, transposed: bool,
) -> Cost:  # fmt: skip
    """The cost of `rope_backward_pair_op`. The angles, 4% of the bytes, are in the cache where they are read again."""
    read = nbytes(dq_TNH, dk_TKH, dv_TKH, cos_TH2, sin_TH2, largest)
    return Cost(read=read, written=(straight + transposed) * (dq_TNH.numel() + 2 * dk_TKH.numel()) + 4)
