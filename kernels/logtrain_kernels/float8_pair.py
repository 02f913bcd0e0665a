"""A matrix in float8 with one scale for all of it, as it lies and transposed: a product of float8 matrices on Hopper
sums over the last dimension of both, so the forward reads x, and the weight's gradient x transposed; likewise dy.

The scale comes before the first element, so there are two looks at the matrix: `float8_largest` for the largest
absolute value, and `float8_pair`, which reads it once and writes one of the two or both. It takes tiles, and turns them
in shared memory, so that both writes are 16 bytes a thread. The largest value travels as its bits (float8_bits.py).

Shapes in names: T rows, D elements of a row, P programs.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from logtrain_kernels.cost import Cost, nbytes
from logtrain_kernels.device import num_processors, uses_triton
from logtrain_kernels.float8 import E4M3, Float8, float8_amax, float8_round, float8_scale
from logtrain_kernels.float8_bits import e4m3, magnitude, scales
from logtrain_kernels.language import constexpr


class Float8Pair(NamedTuple):
    """A matrix in float8 both ways. Of a way that was not asked for there is only the shape."""

    values: Tensor
    """float8 [T, D]."""
    transposed: Tensor
    """float8 [D, T]."""
    inverse: Tensor
    """1 / m of the scale m, fp32 []."""

    @property
    def straight(self) -> Float8:
        """The matrix as it lies."""
        return Float8(self.values, self.inverse)

    @property
    def turned(self) -> Float8:
        """The matrix transposed."""
        return Float8(self.transposed, self.inverse)


# ---- Triton: the first look


@triton.jit
def largest_of_blocks(x_N, largest_P, N, BLOCK: constexpr, STAGES: constexpr):
    """Gives the bits of the largest element of every P-th block."""
    largest = tl.zeros((BLOCK,), dtype=tl.int32)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    for first in tl.range(start, N, tl.num_programs(0) * BLOCK, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        at = first + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, magnitude(tl.load(x_N + at, mask=at < N, other=0.0).to(tl.float32)))
    tl.store(largest_P + tl.program_id(0), tl.max(largest))


# ---- Triton: the second, of a tile for each program


@triton.jit
def tile(ROWS: constexpr, COLUMNS: constexpr):
    """-> the rows and the columns of this program"""
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return row, tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def scale_of(largest, inverse):
    """-> the scale m of the bits of the largest element; the first program writes 1 / m"""
    m, back = scales(tl.load(largest))
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(inverse, back)
    return m


@triton.jit
def store_tile(q, values_TD, values_DT, row, column, T, last, D: constexpr, STRAIGHT: constexpr, TRANSPOSED: constexpr):
    """Writes a tile of a matrix of D columns, of which those from `last` on are not this tile's."""
    if STRAIGHT:
        inside = (row < T)[:, None] & (column < last)[None, :]
        tl.store(values_TD + row[:, None] * D + column[None, :], q, mask=inside)
    if TRANSPOSED:
        inside = (column < last)[:, None] & (row < T)[None, :]
        tl.store(values_DT + column[:, None] * T + row[None, :], tl.trans(q), mask=inside)


@triton.jit
def cast_tiles(
    x_TD, largest, values_TD, values_DT, inverse, T,
    D: constexpr, STRAIGHT: constexpr, TRANSPOSED: constexpr, ROWS: constexpr, COLUMNS: constexpr,
):  # fmt: skip
    """Casts a tile."""
    row, column = tile(ROWS, COLUMNS)
    inside = (row < T)[:, None] & (column < D)[None, :]
    x = tl.load(x_TD + row[:, None] * D + column[None, :], mask=inside, other=0.0).to(tl.float32)
    q = e4m3(x * scale_of(largest, inverse))
    store_tile(q, values_TD, values_DT, row, column, T, D, D, STRAIGHT, TRANSPOSED)


@triton.jit
def turn_tiles(values_TD, values_DT, T, D: constexpr, ROWS: constexpr, COLUMNS: constexpr):
    """Transposes a tile."""
    row, column = tile(ROWS, COLUMNS)
    inside = (row < T)[:, None] & (column < D)[None, :]
    q = tl.load(values_TD + row[:, None] * D + column[None, :], mask=inside, other=0)
    store_tile(q, values_TD, values_DT, row, column, T, D, D, False, True)


LARGEST_LAUNCH = {"BLOCK": 4096, "STAGES": 3, "num_warps": 8}
TILE_LAUNCH = {"ROWS": 128, "COLUMNS": 64, "num_warps": 8}  # 64 elements a thread


def largest_programs(x_TD: Tensor) -> int:
    """Programs that look for the largest element: four a processor."""
    return max(1, min(triton.cdiv(x_TD.numel(), LARGEST_LAUNCH["BLOCK"]), 4 * num_processors(x_TD.device)))


def tile_grid(T: int, D: int) -> tuple[int, int]:
    """A program for each tile, those of the same rows side by side; one where there is none, for the scale."""
    return max(1, triton.cdiv(D, TILE_LAUNCH["COLUMNS"])), max(1, triton.cdiv(T, TILE_LAUNCH["ROWS"]))


def new_pair(x: Tensor, shape: tuple[int, ...], straight: bool, transposed: bool) -> Float8Pair:
    """Memory for a pair of the matrix of this shape on x's device; what was not asked for has that of one element."""
    T, D = shape

    def memory(rows: int, columns: int, wanted: bool) -> Tensor:
        return x.new_empty((rows, columns) if wanted else (1, 1), dtype=E4M3).expand(rows, columns)

    inverse = x.new_empty((), dtype=torch.float32)
    return Float8Pair(memory(T, D, straight), memory(D, T, transposed), inverse)


def pair_bits(pair: Float8Pair) -> tuple[Tensor, Tensor, Tensor]:
    """The pair as kernels write it: Triton spoils stores of float8 beside a maximum (Triton issue 11111)."""
    return pair.values.view(torch.uint8), pair.transposed.view(torch.uint8), pair.inverse


# ---- registered operations


@torch.library.custom_op("logtrain::float8_largest", mutates_args=())
def float8_largest_op(x_TD: Tensor) -> Tensor:
    """-> the bits of the largest |x|, int32 []"""
    if not uses_triton(x_TD):
        return largest_reference(x_TD)
    x_TD = x_TD.contiguous()
    P = largest_programs(x_TD)
    largest_P = x_TD.new_empty(P, dtype=torch.int32)
    largest_of_blocks[(P,)](x_TD, largest_P, x_TD.numel(), **LARGEST_LAUNCH)
    return largest_P.amax()


@float8_largest_op.register_fake
def _(x_TD: Tensor) -> Tensor:
    return x_TD.new_empty((), dtype=torch.int32)


def largest_reference(x_TD: Tensor) -> Tensor:
    """`float8_largest_op` in plain PyTorch."""
    return float8_amax(x_TD, "tensorwise").view(torch.int32)


@torch.library.custom_op("logtrain::float8_pair", mutates_args=())
def float8_pair_op(x_TD: Tensor, largest: Tensor, straight: bool, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """-> a `Float8Pair` of x, whose largest element has these bits"""
    if not uses_triton(x_TD):
        return pair_reference(x_TD, largest, straight, transposed)
    x_TD, (T, D) = x_TD.contiguous(), x_TD.shape
    pair, ways = new_pair(x_TD, (T, D), straight, transposed), {"STRAIGHT": straight, "TRANSPOSED": transposed}
    cast_tiles[tile_grid(T, D)](x_TD, largest, *pair_bits(pair), T, D=D, **ways, **TILE_LAUNCH)
    return pair


@float8_pair_op.register_fake
def _(x_TD: Tensor, largest: Tensor, straight: bool, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    return new_pair(x_TD, x_TD.shape, straight, transposed)


def pair_reference(x_TD: Tensor, largest: Tensor, straight: bool, transposed: bool) -> Float8Pair:
    """`float8_pair_op` in plain PyTorch."""
    m, inverse = float8_scale(largest.view(torch.float32))
    q_TD, pair = float8_round(x_TD, m), new_pair(x_TD, x_TD.shape, straight, transposed)
    values, turned = q_TD if straight else pair.values, q_TD.T.contiguous() if transposed else pair.transposed
    return Float8Pair(values, turned, inverse)


@torch.library.custom_op("logtrain::float8_transposed", mutates_args=())
def float8_transposed_op(values_TD: Tensor) -> Tensor:
    """-> float8 [D, T]"""
    if not uses_triton(values_TD):
        return values_TD.T.contiguous()
    values_TD, (T, D) = values_TD.contiguous(), values_TD.shape
    values_DT = values_TD.new_empty(D, T)
    bits = values_TD.view(torch.uint8), values_DT.view(torch.uint8)
    turn_tiles[tile_grid(T, D)](*bits, T, D=D, **TILE_LAUNCH)
    return values_DT


@float8_transposed_op.register_fake
def _(values_TD: Tensor) -> Tensor:
    return values_TD.new_empty(*values_TD.shape[::-1])


# ---- what the operations cost, and which of them selective recomputation keeps

FLOAT8_KEPT = ("logtrain.float8_largest.default",)  # 4 bytes, for which a matrix would be read again


def largest_cost(read: int, partial: int) -> Cost:
    """The cost of a look at `read` bytes that leaves `partial` bytes of largest values, of which PyTorch takes the
    largest.
    """
    return Cost(read=read + partial, written=partial + 4, launches=2, workspace=partial)


def float8_largest_cost(x_TD: Tensor) -> Cost:
    """The cost of `float8_largest_op`."""
    return largest_cost(nbytes(x_TD), 4 * largest_programs(x_TD))


def float8_pair_cost(x_TD: Tensor, largest: Tensor, straight: bool, transposed: bool) -> Cost:
    """The cost of `float8_pair_op`."""
    return Cost(read=nbytes(x_TD, largest), written=(straight + transposed) * x_TD.numel() + 4)


def float8_transposed_cost(values_TD: Tensor) -> Cost:
    """The cost of `float8_transposed_op`."""
    return Cost(read=nbytes(values_TD), written=nbytes(values_TD))


# ---- what the layers call


def float8_pair(x_TD: Tensor, straight: bool = True, transposed: bool = True) -> Float8Pair:
    """A matrix, fp32 or bf16 [T, D], in e4m3, scaled by its largest absolute value, in the ways that are asked for."""
    return Float8Pair(*float8_pair_op(x_TD, float8_largest_op(x_TD), straight, transposed))


def float8_transposed(values_TD: Tensor) -> Tensor:
    """A float8 matrix transposed, as memory of its own."""
    return float8_transposed_op(values_TD)
