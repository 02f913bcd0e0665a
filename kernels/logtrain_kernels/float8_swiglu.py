"""SwiGLU in float8, tensorwise: what `swiglu` gives, and in the backward what its input gets, cast without writing it
in higher precision.

    forward         y = silu(g) * u [T, F]                    q = round(y m)
    backward        d = (dg, du) of dy, g, u [T, 2F]          q = round(d m)

Each has two looks at its inputs: one for the largest element, one that computes all of them again and casts them. That
is the traffic of writing and reading y, and less than that of d; and where recomputation keeps the first look of the
forward, its second pass reads gate and up once and writes y^T in float8 alone. Elements are rounded to the inputs'
dtype before they are cast, so that float8 numbers are bit by bit those of the two operations one after the other.

Shapes in names: T tokens, F feed-forward width, P programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logtrain_kernels.cost import Cost, nbytes
from logtrain_kernels.device import uses_triton
from logtrain_kernels.float8_bits import e4m3, magnitude
from logtrain_kernels.float8_pair import (
    TILE_LAUNCH,
    largest_cost,
    largest_reference,
    new_pair,
    pair_bits,
    pair_reference,
    scale_of,
    store_tile,
    tile,
    tile_grid,
)
from logtrain_kernels.language import constexpr
from logtrain_kernels.swiglu import SWIGLU_LAUNCH, gate, gate_backward, gated, gated_backward, halves


def gradient_reference(dy_TF: Tensor, gate_up_T2F: Tensor) -> Tensor:
    """-> d [T, 2F]"""
    d_T2F = gate_up_T2F.clone()
    gate_backward(dy_TF, d_T2F)
    return d_T2F


# ---- Triton: the first look, of BLOCK columns of a row for each program


@triton.jit
def gated_largest(gate_up_T2F, largest_P, F, BLOCK: constexpr):
    """Gives the bits of the largest of BLOCK elements of y."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    g, u = halves(gate_up_T2F, row * 2 * F + column, F, column < F)
    y = gated(g, u).to(gate_up_T2F.dtype.element_ty).to(tl.float32)
    tl.store(largest_P + row * tl.num_programs(1) + tl.program_id(1), tl.max(magnitude(y)))


@triton.jit
def gated_backward_largest(dy_TF, gate_up_T2F, largest_P, F, BLOCK: constexpr):
    """Gives the bits of the largest of BLOCK elements of dg and as many of du."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(dy_TF + row * F + column, mask=column < F, other=0.0).to(tl.float32)
    g, u = halves(gate_up_T2F, row * 2 * F + column, F, column < F)
    dg, du = gated_backward(dy, g, u)
    dtype = gate_up_T2F.dtype.element_ty
    largest = tl.maximum(magnitude(dg.to(dtype).to(tl.float32)), magnitude(du.to(dtype).to(tl.float32)))
    tl.store(largest_P + row * tl.num_programs(1) + tl.program_id(1), tl.max(largest))


# ---- Triton: the second, of a tile for each program


@triton.jit
def cast_gated_tiles(
    gate_up_T2F, largest, values_TF, values_FT, inverse, T,
    F: constexpr, STRAIGHT: constexpr, TRANSPOSED: constexpr, ROWS: constexpr, COLUMNS: constexpr,
):  # fmt: skip
    """Casts a tile of y."""
    row, column = tile(ROWS, COLUMNS)
    inside = (row < T)[:, None] & (column < F)[None, :]
    g, u = halves(gate_up_T2F, row[:, None] * 2 * F + column[None, :], F, inside)
    y = gated(g, u).to(gate_up_T2F.dtype.element_ty).to(tl.float32)
    q = e4m3(y * scale_of(largest, inverse))
    store_tile(q, values_TF, values_FT, row, column, T, F, F, STRAIGHT, TRANSPOSED)


@triton.jit
def cast_gated_backward_tiles(
    dy_TF, gate_up_T2F, largest, values_T2F, values_2FT, inverse, T,
    F: constexpr, STRAIGHT: constexpr, TRANSPOSED: constexpr, ROWS: constexpr, COLUMNS: constexpr,
):  # fmt: skip
    """Casts a tile of dg, and the one of du beside it."""
    row, column = tile(ROWS, COLUMNS)
    inside = (row < T)[:, None] & (column < F)[None, :]
    dy = tl.load(dy_TF + row[:, None] * F + column[None, :], mask=inside, other=0.0).to(tl.float32)
    g, u = halves(gate_up_T2F, row[:, None] * 2 * F + column[None, :], F, inside)
    dg, du = gated_backward(dy, g, u)
    dtype = gate_up_T2F.dtype.element_ty
    m = scale_of(largest, inverse)
    q = e4m3(dg.to(dtype).to(tl.float32) * m)
    store_tile(q, values_T2F, values_2FT, row, column, T, F, 2 * F, STRAIGHT, TRANSPOSED)
    q = e4m3(du.to(dtype).to(tl.float32) * m)
    store_tile(q, values_T2F, values_2FT, row, column + F, T, 2 * F, 2 * F, STRAIGHT, TRANSPOSED)


BACKWARD_TILE_LAUNCH = TILE_LAUNCH | {"num_warps": 8}  # 32 elements a thread, of five tiles


def look_grid(gate_up_T2F: Tensor) -> tuple[int, int]:
    """Programs of a first look, as many as SwiGLU itself has."""
    return len(gate_up_T2F), triton.cdiv(gate_up_T2F.shape[1] // 2, SWIGLU_LAUNCH["BLOCK"])


# ---- registered operations


@torch.library.custom_op("logtrain::swiglu_largest", mutates_args=())
def swiglu_largest_op(gate_up_T2F: Tensor) -> Tensor:
    """-> the bits of the largest |y|, int32 []"""
    if not uses_triton(gate_up_T2F):
        return largest_reference(gate(gate_up_T2F))
    gate_up_T2F, grid = gate_up_T2F.contiguous(), look_grid(gate_up_T2F)
    largest_P = gate_up_T2F.new_empty(grid, dtype=torch.int32)
    gated_largest[grid](gate_up_T2F, largest_P, gate_up_T2F.shape[1] // 2, **SWIGLU_LAUNCH)
    return largest_P.amax()


@torch.library.custom_op("logtrain::swiglu_pair", mutates_args=())
def swiglu_pair_op(
    gate_up_T2F: Tensor, largest: Tensor, straight: bool, transposed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-> a `Float8Pair` of y, whose largest element has these bits"""
    if not uses_triton(gate_up_T2F):
        return pair_reference(gate(gate_up_T2F), largest, straight, transposed)
    gate_up_T2F, T, F = gate_up_T2F.contiguous(), len(gate_up_T2F), gate_up_T2F.shape[1] // 2
    pair, ways = new_pair(gate_up_T2F, (T, F), straight, transposed), {"STRAIGHT": straight, "TRANSPOSED": transposed}
    cast_gated_tiles[tile_grid(T, F)](gate_up_T2F, largest, *pair_bits(pair), T, F=F, **ways, **TILE_LAUNCH)
    return pair


@torch.library.custom_op("logtrain::swiglu_backward_largest", mutates_args=())
def swiglu_backward_largest_op(dy_TF: Tensor, gate_up_T2F: Tensor) -> Tensor:
    """-> the bits of the largest |d|, int32 []"""
    if not uses_triton(dy_TF):
        return largest_reference(gradient_reference(dy_TF, gate_up_T2F))
    dy_TF, gate_up_T2F, grid = dy_TF.contiguous(), gate_up_T2F.contiguous(), look_grid(gate_up_T2F)
    largest_P = gate_up_T2F.new_empty(grid, dtype=torch.int32)
    gated_backward_largest[grid](dy_TF, gate_up_T2F, largest_P, dy_TF.shape[1], **SWIGLU_LAUNCH)
    return largest_P.amax()


@torch.library.custom_op("logtrain::swiglu_backward_pair", mutates_args=())
def swiglu_backward_pair_op(
    dy_TF: Tensor, gate_up_T2F: Tensor, largest: Tensor, straight: bool, transposed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-> a `Float8Pair` of d, whose largest element has these bits"""
    if not uses_triton(dy_TF):
        return pair_reference(gradient_reference(dy_TF, gate_up_T2F), largest, straight, transposed)
    dy_TF, gate_up_T2F, (T, F) = dy_TF.contiguous(), gate_up_T2F.contiguous(), dy_TF.shape
    pair, ways = new_pair(dy_TF, (T, 2 * F), straight, transposed), {"STRAIGHT": straight, "TRANSPOSED": transposed}
    tensors = (dy_TF, gate_up_T2F, largest, *pair_bits(pair))
    cast_gated_backward_tiles[tile_grid(T, F)](*tensors, T, F=F, **ways, **BACKWARD_TILE_LAUNCH)
    return pair


swiglu_largest_op.register_fake(lambda gate_up_T2F: gate_up_T2F.new_empty((), dtype=torch.int32))
swiglu_backward_largest_op.register_fake(lambda dy_TF, _: dy_TF.new_empty((), dtype=torch.int32))


@swiglu_pair_op.register_fake
def _(gate_up_T2F: Tensor, largest: Tensor, straight: bool, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    return new_pair(gate_up_T2F, (len(gate_up_T2F), gate_up_T2F.shape[1] // 2), straight, transposed)


@swiglu_backward_pair_op.register_fake
def _(dy_TF, gate_up_T2F: Tensor, largest, straight: bool, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    return new_pair(gate_up_T2F, gate_up_T2F.shape, straight, transposed)


# ---- what the operations cost, and which of them selective recomputation keeps

FLOAT8_SWIGLU_KEPT = ("logtrain.swiglu_largest.default",)  # 4 bytes, for which gate and up would be read again


def swiglu_largest_cost(gate_up_T2F: Tensor) -> Cost:
    """The cost of `swiglu_largest_op`."""
    rows, blocks = look_grid(gate_up_T2F)
    return largest_cost(nbytes(gate_up_T2F), 4 * rows * blocks)


def swiglu_pair_cost(gate_up_T2F: Tensor, largest: Tensor, straight: bool, transposed: bool) -> Cost:
    """The cost of `swiglu_pair_op`."""
    ways = straight + transposed
    return Cost(read=nbytes(gate_up_T2F, largest), written=ways * gate_up_T2F.numel() // 2 + 4)


def swiglu_backward_largest_cost(dy_TF: Tensor, gate_up_T2F: Tensor) -> Cost:
    """The cost of `swiglu_backward_largest_op`."""
    rows, blocks = look_grid(gate_up_T2F)
    return largest_cost(nbytes(dy_TF, gate_up_T2F), 4 * rows * blocks)


def swiglu_backward_pair_cost(
    dy_TF: Tensor, gate_up_T2F: Tensor, largest: Tensor, straight: bool, transposed: bool
) -> Cost:
    """The cost of `swiglu_backward_pair_op`."""
    read = nbytes(dy_TF, gate_up_T2F, largest)
    return Cost(read=read, written=(straight + transposed) * gate_up_T2F.numel() + 4)
