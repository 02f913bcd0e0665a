"""The cast of a matrix to float8 with a scale for each row: what float8.py defines, in one kernel. A program reads a
row, finds its scale and writes it; rows of more elements than the registers of a program hold are read twice. Columns
may be multiplied by a vector first (the scales of the other operand, in the backward of float8_linear.py).

Shapes in names: T rows, D elements of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logtrain_kernels.cost import Cost, nbytes
from logtrain_kernels.device import uses_triton
from logtrain_kernels.float8 import E4M3, float8_amax, float8_round, float8_scale
from logtrain_kernels.float8_bits import e4m3, magnitude, scales
from logtrain_kernels.language import constexpr


@triton.jit
def loaded(x_TD, factor_D, at, column, inside, FACTOR: constexpr):
    """Elements of x in fp32, times the factors of their columns."""
    x = tl.load(x_TD + at, mask=inside, other=0.0).to(tl.float32)
    if FACTOR:
        x *= tl.load(factor_D + column, mask=inside, other=0.0)
    return x


@triton.jit
def cast_rows(x_TD, factor_D, values_TD, inverse_T, D: constexpr, FACTOR: constexpr, BLOCK: constexpr):
    """Casts a row: at once, or where it is longer than a block, block by block with a look at all of them before."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    if D <= BLOCK:
        inside, at = column < D, row * D + column
        x = loaded(x_TD, factor_D, at, column, inside, FACTOR)
        m, inverse = scales(tl.max(magnitude(x)))
        tl.store(values_TD + at, e4m3(x * m), mask=inside)
    else:
        largest = tl.zeros((BLOCK,), dtype=tl.int32)
        for first in tl.range(0, D, BLOCK):  # pyright: ignore[reportGeneralTypeIssues]
            inside, at = first + column < D, row * D + first + column
            largest = tl.maximum(largest, magnitude(loaded(x_TD, factor_D, at, first + column, inside, FACTOR)))
        m, inverse = scales(tl.max(largest))
        for first in tl.range(0, D, BLOCK):  # pyright: ignore[reportGeneralTypeIssues]
            inside, at = first + column < D, row * D + first + column
            x = loaded(x_TD, factor_D, at, first + column, inside, FACTOR)
            tl.store(values_TD + at, e4m3(x * m), mask=inside)
    tl.store(inverse_T + row, inverse)


MOST_COLUMNS = 16_384  # that a program holds: 16 elements a thread


def rows_launch(D: int) -> dict[str, int]:
    """Launch parameters of the rowwise cast: up to 16 elements a thread."""
    block = min(triton.next_power_of_2(D), MOST_COLUMNS)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 32)}


# ---- registered operation


@torch.library.custom_op("logtrain::float8_rows", mutates_args=())
def float8_rows_op(x_TD: Tensor, factor_D: Tensor | None) -> tuple[Tensor, Tensor]:
    """-> (float8 [T, D], 1 / m fp32 [T, 1]); `factor_D`: fp32, by which columns are multiplied before"""
    if not uses_triton(x_TD):
        return rows_reference(x_TD, factor_D)
    x_TD, (T, D) = x_TD.contiguous(), x_TD.shape
    values_TD = x_TD.new_empty(T, D, dtype=torch.uint8)
    inverse_T1 = x_TD.new_empty((T, 1), dtype=torch.float32)
    if T:
        factor = factor_D.contiguous() if factor_D is not None else None
        cast_rows[(T,)](x_TD, factor, values_TD, inverse_T1, D=D, FACTOR=factor is not None, **rows_launch(D))
    return values_TD.view(E4M3), inverse_T1


@float8_rows_op.register_fake
def _(x_TD: Tensor, factor_D: Tensor | None) -> tuple[Tensor, Tensor]:
    return x_TD.new_empty(x_TD.shape, dtype=E4M3), x_TD.new_empty((len(x_TD), 1), dtype=torch.float32)


def rows_reference(x_TD: Tensor, factor_D: Tensor | None) -> tuple[Tensor, Tensor]:
    """`float8_rows_op` in plain PyTorch."""
    x_TD = x_TD if factor_D is None else x_TD.float() * factor_D
    m, inverse = float8_scale(float8_amax(x_TD, "rowwise"))
    return float8_round(x_TD, m), inverse


def float8_rows_cost(x_TD: Tensor, factor_D: Tensor | None) -> Cost:
    """The cost of `float8_rows_op`."""
    reads = 1 if x_TD.shape[1] <= MOST_COLUMNS else 2
    return Cost(read=reads * nbytes(x_TD, factor_D), written=x_TD.numel() + 4 * len(x_TD))
