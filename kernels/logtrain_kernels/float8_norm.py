"""RMSNorm in float8, tensorwise: what `rms_norm` and `add_rms_norm` give, cast, without writing it in higher precision.

    r = residual + x        y = r * s * w        s = 1 / sqrt(mean(r^2) + eps)        q = round(y m)

The first look (`rms_norm_largest`) writes r and s, and of y the largest element alone. The second (`rms_norm_pair`)
reads r again, where it would read y, and computes y from it. y is rounded to r's dtype before it is cast, so that
float8 numbers are bit by bit those of the norm and the cast one after the other. The norm's backward reads r and s
alone (rms_norm.py).

Shapes in names: T tokens, D elements of a row.
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
    Float8Pair,
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
from logtrain_kernels.rms_norm import normalise, rms_norm_forward_launch, summed_row


def rms_norm_pair_reference(
    r_TD: Tensor, scale_T: Tensor, weight_D: Tensor, largest: Tensor, straight: bool, transposed: bool
) -> Float8Pair:
    """`rms_norm_pair_op` in plain PyTorch."""
    y_TD = (r_TD.float() * scale_T[:, None]).mul_(weight_D.float()).to(r_TD.dtype)
    return pair_reference(y_TD, largest, straight, transposed)


# ---- Triton: the first look, of a row for each program, and the second, of a tile


@triton.jit
def norm_largest(
    x_TD, residual_TD, weight_D, sum_TD, largest_T, scale_T, eps, D: constexpr, ADD: constexpr, BLOCK: constexpr
):
    """Gives the sum and the scale of one row, and the bits of its norm's largest element."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < D
    r, scale = summed_row(x_TD, residual_TD, sum_TD, scale_T, eps, row, row * D + column, inside, D, ADD)
    weight = tl.load(weight_D + column, mask=inside, other=0.0).to(tl.float32)
    y = (r * scale * weight).to(x_TD.dtype.element_ty)
    tl.store(largest_T + row, tl.max(magnitude(y.to(tl.float32))))


@triton.jit
def cast_norm_tiles(
    r_TD, scale_T, weight_D, largest, values_TD, values_DT, inverse, T,
    D: constexpr, STRAIGHT: constexpr, TRANSPOSED: constexpr, ROWS: constexpr, COLUMNS: constexpr,
):  # fmt: skip
    """Casts a tile of y."""
    row, column = tile(ROWS, COLUMNS)
    inside = (row < T)[:, None] & (column < D)[None, :]
    r = tl.load(r_TD + row[:, None] * D + column[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_T + row, mask=row < T, other=0.0)
    weight = tl.load(weight_D + column, mask=column < D, other=0.0).to(tl.float32)
    y = (r * scale[:, None] * weight[None, :]).to(r_TD.dtype.element_ty).to(tl.float32)
    q = e4m3(y * scale_of(largest, inverse))
    store_tile(q, values_TD, values_DT, row, column, T, D, D, STRAIGHT, TRANSPOSED)


# ---- registered operations


@torch.library.custom_op("logtrain::rms_norm_largest", mutates_args=())
def rms_norm_largest_op(
    x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """-> (residual + x [T, D], nothing without a residual; scale fp32 [T]; the bits of the largest |y|, int32 [])"""
    sum_TD = x_TD.new_empty(x_TD.shape if residual_TD is not None else 0)
    if not uses_triton(x_TD):
        if residual_TD is not None:
            torch.add(residual_TD, x_TD, out=sum_TD)
        y_TD, scale_T = normalise(x_TD if residual_TD is None else sum_TD, weight_D, eps)
        return sum_TD, scale_T, largest_reference(y_TD)
    x_TD, weight_D, (T, D) = x_TD.contiguous(), weight_D.contiguous(), x_TD.shape
    residual = x_TD if residual_TD is None else residual_TD.contiguous()
    scale_T, largest_T = x_TD.new_empty(T, dtype=torch.float32), x_TD.new_empty(T, dtype=torch.int32)
    tensors, launch = (x_TD, residual, weight_D, sum_TD, largest_T, scale_T), rms_norm_forward_launch(D)
    norm_largest[(T,)](*tensors, eps, D=D, ADD=residual_TD is not None, **launch)
    return sum_TD, scale_T, largest_T.amax()


@rms_norm_largest_op.register_fake
def _(x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    sum_TD = x_TD.new_empty(x_TD.shape if residual_TD is not None else 0)
    return sum_TD, x_TD.new_empty(len(x_TD), dtype=torch.float32), x_TD.new_empty((), dtype=torch.int32)


@torch.library.custom_op("logtrain::rms_norm_pair", mutates_args=())
def rms_norm_pair_op(
    r_TD: Tensor, scale_T: Tensor, weight_D: Tensor, largest: Tensor, straight: bool, transposed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-> a `Float8Pair` of y, whose largest element has these bits"""
    if not uses_triton(r_TD):
        return rms_norm_pair_reference(r_TD, scale_T, weight_D, largest, straight, transposed)
    r_TD, weight_D, (T, D) = r_TD.contiguous(), weight_D.contiguous(), r_TD.shape
    pair, ways = new_pair(r_TD, (T, D), straight, transposed), {"STRAIGHT": straight, "TRANSPOSED": transposed}
    tensors = (r_TD, scale_T, weight_D, largest, *pair_bits(pair))
    cast_norm_tiles[tile_grid(T, D)](*tensors, T, D=D, **ways, **TILE_LAUNCH)
    return pair


@rms_norm_pair_op.register_fake
def _(r_TD, scale_T, weight_D, largest, straight: bool, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    return new_pair(r_TD, r_TD.shape, straight, transposed)


# ---- what the operations cost; recomputation does both again, as it needs r


def rms_norm_largest_cost(x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float) -> Cost:
    """The cost of `rms_norm_largest_op`."""
    of_rows = 4 * len(x_TD)
    return Cost(
        read=nbytes(x_TD, residual_TD, weight_D) + of_rows,
        written=nbytes(residual_TD) + 2 * of_rows + 4,
        launches=2,
        workspace=of_rows,
    )


def rms_norm_pair_cost(
    r_TD: Tensor, scale_T: Tensor, weight_D: Tensor, largest: Tensor, straight: bool, transposed: bool
) -> Cost:
    """The cost of `rms_norm_pair_op`."""
    read = nbytes(r_TD, scale_T, weight_D, largest)
    return Cost(read=read, written=(straight + transposed) * r_TD.numel() + 4)
