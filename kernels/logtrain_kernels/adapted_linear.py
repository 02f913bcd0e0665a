"""A linear layer whose matrix stays, with low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685) on it:

    h = s drop(x) A^T        y = x W^T + h B^T        A [R, D]: the As of all adapters; B: each of its own columns of y
    dh = s dy B        dB = dy^T h        dA = dh^T drop(x)        dx = dy W + drop(dh A)

What the adapters add is written first, and the product with W is accumulated on it, by cuBLAS in its own kernel: the
small part is rounded beside its own size, and nothing but the adapters' own products passes over [T, D] or [T, O]. The
products with A are those of dropped_linear.py. W has no gradient.

Shapes in names: T tokens, D in features, O out features, r ranks of an adapter, R of all of the layer's. All
are of one dtype, bf16 or fp32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from logtrain_kernels.cost import Cost, count_flops, nbytes
from logtrain_kernels.dropped_linear import dropped_linear_backward_op, dropped_linear_op
from logtrain_kernels.float8 import Float8, float8_product
from logtrain_kernels.float8_cast import float8_cast
from logtrain_kernels.float8_linear import Float8Recipe, input_gradient


class AdapterSpan(NamedTuple):
    """Which parts of a layer and of its As and Bs belong to one adapter."""

    columns: slice
    """columns of y, which are rows of W"""
    rows: slice
    """rows of the Bs, which lie below each other"""
    ranks: slice
    """rows of the As, which lie below each other"""


def bounds_of(spans: Sequence[AdapterSpan]) -> list[int]:
    """Spans as an operation takes them: start and stop of each slice, six numbers a span."""
    return [bound for span in spans for part in span for bound in (part.start, part.stop)]


def spans_of(bounds: list[int]) -> list[AdapterSpan]:
    """The spans that `bounds_of` made numbers of."""
    parts = [slice(start, stop) for start, stop in zip(bounds[::2], bounds[1::2], strict=True)]
    return [AdapterSpan(*parts[i : i + 3]) for i in range(0, len(parts), 3)]


def uncovered(spans: Sequence[AdapterSpan], num_columns: int) -> list[slice]:
    """Columns of y without an adapter."""
    stops = [0, *(span.columns.stop for span in spans)]
    starts = [*(span.columns.start for span in spans), num_columns]
    return [slice(stop, start) for stop, start in zip(stops, starts, strict=True) if stop < start]


# ---- registered operations: what each adapter does in its own columns. The products are PyTorch's; they are operations
# because they fill a tensor piece by piece, which compilers do by copies, and recomputed blocks in memory of their own


@torch.library.custom_op("logtrain::adapter_outputs", mutates_args=())
def adapter_outputs_op(h_TR: Tensor, b_Or: Tensor, bounds: list[int], num_columns: int) -> Tensor:
    """-> h B^T [T, O], 0 in columns without an adapter"""
    spans, y_TO = spans_of(bounds), h_TR.new_empty(len(h_TR), num_columns)
    for columns in uncovered(spans, num_columns):
        y_TO[:, columns].zero_()
    for span in spans:
        torch.mm(h_TR[:, span.ranks], b_Or[span.rows].T, out=y_TO[:, span.columns])
    return y_TO


@adapter_outputs_op.register_fake
def _(h_TR, b_Or, bounds, num_columns) -> Tensor:
    return h_TR.new_empty(len(h_TR), num_columns)


@torch.library.custom_op("logtrain::adapter_outputs_backward", mutates_args=())
def adapter_outputs_backward_op(
    dy_TO: Tensor, h_TR: Tensor, b_Or: Tensor, bounds: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    """-> (dh = s dy B [T, R], dB = dy^T h)"""
    dh_TR, db_Or = torch.empty_like(h_TR), torch.empty_like(b_Or)
    for span in spans_of(bounds):
        dy, h = dy_TO[:, span.columns], h_TR[:, span.ranks]
        dh_TR[:, span.ranks].addmm_(dy, b_Or[span.rows], beta=0, alpha=scale)
        torch.mm(dy.T, h, out=db_Or[span.rows])
    return dh_TR, db_Or


@adapter_outputs_backward_op.register_fake
def _(dy_TO, h_TR, b_Or, bounds, scale) -> tuple[Tensor, Tensor]:
    return h_TR.new_empty(h_TR.shape), b_Or.new_empty(b_Or.shape)


# ---- what the operations cost, and which of them selective recomputation keeps

ADAPTED_LINEAR_KEPT = (
    "logtrain.adapter_outputs.default",
)  # the product with W, which adds to it in place, is kept too


def adapter_outputs_cost(h_TR: Tensor, b_Or: Tensor, bounds: list[int], num_columns: int) -> Cost:
    """The cost of `adapter_outputs_op`: a product for each adapter, its part of h with its B, written to its columns.
    The others are filled with 0.
    """
    spans, (T, (rows, rank)) = spans_of(bounds), (len(h_TR), b_Or.shape)
    return Cost(
        read=nbytes(h_TR, b_Or),
        written=T * num_columns * h_TR.element_size(),
        launches=len(spans) + len(uncovered(spans, num_columns)),
        product=(T, rows, rank, 1),
    )


def adapter_outputs_backward_cost(dy_TO: Tensor, h_TR: Tensor, b_Or: Tensor, bounds: list[int], scale: float) -> Cost:
    """The cost of `adapter_outputs_backward_op`: two products for each adapter, both of which read its columns of
    dy.
    """
    T, (rows, rank) = len(h_TR), b_Or.shape
    return Cost(
        read=2 * T * rows * dy_TO.element_size() + nbytes(h_TR, b_Or),
        written=nbytes(h_TR, b_Or),
        launches=2 * len(spans_of(bounds)),
        product=(T, rank, rows, 2),
    )


count_flops(torch.ops.logtrain.adapter_outputs, adapter_outputs_cost)
count_flops(torch.ops.logtrain.adapter_outputs_backward, adapter_outputs_backward_cost)


# ---- the layer


def add_adapters_(y_TO: Tensor, h_TR: Tensor, b_Or: Tensor, bounds: list[int]) -> Tensor:
    """y + h B^T, in place: beside a product in float8, whose own rounding is the coarser, B's need not come first."""
    for span in spans_of(bounds):
        y_TO[:, span.columns].addmm_(h_TR[:, span.ranks], b_Or[span.rows].T)
    return y_TO


class AdaptedLinear(torch.autograd.Function):
    """`adapted_linear`; the products with W are PyTorch's own, so that whatever counts or keeps them sees them."""

    @staticmethod
    def forward(ctx, x_TD: Tensor, weight_OD, a_RD: Tensor, b_Or: Tensor, bounds, scale, seeds_T, salt, drop, float8):
        ctx.dtypes, a_RD, b_Or = (a_RD.dtype, b_Or.dtype), a_RD.to(x_TD.dtype), b_Or.to(x_TD.dtype)
        h_TR = dropped_linear_op(x_TD, a_RD, seeds_T, salt, drop, scale)
        if float8:
            recipe, *weight = float8
            y_TO = float8_product(float8_cast(x_TD, recipe.scaling), Float8(*weight), x_TD.dtype, fast=True)
            y_TO = add_adapters_(y_TO, h_TR, b_Or, bounds)
        else:
            recipe, weight = None, (weight_OD,)
            y_TO = adapter_outputs_op(h_TR, b_Or, bounds, len(weight_OD)).addmm_(x_TD, weight_OD.T)
        ctx.save_for_backward(x_TD, a_RD, b_Or, h_TR, seeds_T, salt, *weight)
        ctx.bounds, ctx.scale, ctx.drop, ctx.recipe = bounds, scale, drop, recipe
        return y_TO

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, a_RD, b_Or, h_TR, seeds_T, salt, *weight = ctx.saved_tensors
        for_x = ctx.needs_input_grad[0]
        dh_TR, db_Or = adapter_outputs_backward_op(dy_TO, h_TR, b_Or, ctx.bounds, ctx.scale)
        dx_TD, da_RD = dropped_linear_backward_op(dh_TR, x_TD, a_RD, seeds_T, salt, ctx.drop, for_x)
        if not for_x:
            dx_TD = None
        elif ctx.recipe:
            dx_TD.add_(input_gradient(dy_TO, Float8(*weight), ctx.recipe))
        else:
            dx_TD.addmm_(dy_TO, *weight)
        return dx_TD, None, da_RD.to(ctx.dtypes[0]), db_Or.to(ctx.dtypes[1]), *[None] * 6


# ---- what the model calls


def adapted_linear(
    x_TD: Tensor,
    weight_OD: Tensor,
    a_RD: Tensor,
    b_Or: Tensor,
    spans: Sequence[AdapterSpan],
    scale: float,
    seeds_T: Tensor | None = None,
    salt: Tensor | None = None,
    drop: int = 0,
    float8: tuple[Float8Recipe, Tensor, Tensor] | None = None,
) -> Tensor:
    """x W^T with what the adapters of `spans` add, in the order of their columns: x [T, D] and W [O, D] in one dtype,
    fp32 or bf16 -> [T, O]. A and B may be fp32 beside bf16, and so are their gradients then.

    With drop > 0 the adapters see x without a share of `drop` / 65,536 of its elements. `seeds_T`: int64, 64 random
    bits for each token. `salt`: an int64 scalar of the layer's own on the host; a tensor, since numbers make
    torch.compile compile every layer for itself.

    `float8`: how the products with W are done in float8, and W so, the two tensors of a `Float8`; W itself is not read.
    """
    return AdaptedLinear.apply(x_TD, weight_OD, a_RD, b_Or, bounds_of(spans), scale, seeds_T, salt, drop, float8)
