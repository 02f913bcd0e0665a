"""A linear layer whose matrix stays, with low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685) on it:

    h = s drop(x) A^T        y = x W^T + h B^T        A [R, D]: the As of all adapters; B: each of its own columns of y
    dh = s dy B        dB = dy^T h        dA = dh^T drop(x)        dx = dy W + drop(dh A)

What the adapters add is written first, and the product with W is accumulated on it, by cuBLAS in its own kernel: the
small part is rounded beside its own size, and nothing but the adapters' own products passes over [T, D] or [T, O]. The
products with A are those of dropped_linear.py. W has no gradient.

Shapes in names: T tokens, D in features, O out features, r ranks of an adapter, R of all of the layer's.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from logtrain_kernels.dropped_linear import dropped_linear_backward_op, dropped_linear_op

Slices = tuple[slice, slice, slice]
"""Where an adapter lies: its columns of y, its rows of B (the Bs lie below each other as well) and of A."""


# ---- registered operations: what each adapter does in its own columns. The products are PyTorch's; they are operations
# because they fill a tensor piece by piece, which compilers do by copies, and recomputed blocks in memory of their own


def numbers(places: Sequence[Slices]) -> list[int]:
    """As an operation takes them."""
    return [at for place in places for part in place for at in (part.start, part.stop)]


def slices(places: list[int]) -> Iterator[Slices]:
    for i in range(0, len(places), 6):
        yield tuple(slice(*places[j : j + 2]) for j in range(i, i + 6, 2))


@torch.library.custom_op("logtrain::adapter_outputs", mutates_args=())
def adapter_outputs_op(h_TR: Tensor, b_Or: Tensor, places: list[int], num_columns: int) -> Tensor:
    """-> h B^T [T, O], 0 in columns without an adapter"""
    y_TO, end = h_TR.new_empty(len(h_TR), num_columns), 0
    for columns, rows, ranks in slices(places):
        if columns.start > end:
            y_TO[:, end : columns.start].zero_()
        torch.mm(h_TR[:, ranks], b_Or[rows].T, out=y_TO[:, columns])
        end = columns.stop
    if num_columns > end:
        y_TO[:, end:].zero_()
    return y_TO


@adapter_outputs_op.register_fake
def _(h_TR, b_Or, places, num_columns) -> Tensor:
    return h_TR.new_empty(len(h_TR), num_columns)


@torch.library.custom_op("logtrain::adapter_outputs_backward", mutates_args=())
def adapter_outputs_backward_op(
    dy_TO: Tensor, h_TR: Tensor, b_Or: Tensor, places: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    """-> (dh = s dy B [T, R], dB = dy^T h)"""
    dh_TR, db_Or = torch.empty_like(h_TR), torch.empty_like(b_Or)
    for columns, rows, ranks in slices(places):
        dh_TR[:, ranks].addmm_(dy_TO[:, columns], b_Or[rows], beta=0, alpha=scale)
        torch.mm(dy_TO[:, columns].T, h_TR[:, ranks], out=db_Or[rows])
    return dh_TR, db_Or


@adapter_outputs_backward_op.register_fake
def _(dy_TO, h_TR, b_Or, places, scale) -> tuple[Tensor, Tensor]:
    return h_TR.new_empty(h_TR.shape), b_Or.new_empty(b_Or.shape)


@register_flop_formula(torch.ops.logtrain.adapter_outputs)
def adapter_outputs_flop(h_shape, b_shape, *_, **__) -> int:
    return 2 * h_shape[0] * b_shape[0] * b_shape[1]


@register_flop_formula(torch.ops.logtrain.adapter_outputs_backward)
def adapter_outputs_backward_flop(_dy_shape, h_shape, b_shape, *_, **__) -> int:
    return 2 * adapter_outputs_flop(h_shape, b_shape)


# ---- the layer


class AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: Tensor, weight_OD: Tensor, a_RD: Tensor, b_Or: Tensor, places, scale, keys_T, salt, drop):
        ctx.dtypes, a_RD, b_Or = (a_RD.dtype, b_Or.dtype), a_RD.to(x_TD.dtype), b_Or.to(x_TD.dtype)
        h_TR = dropped_linear_op(x_TD, a_RD, keys_T, salt, drop, scale)
        y_TO = adapter_outputs_op(h_TR, b_Or, places, len(weight_OD)).addmm_(x_TD, weight_OD.T)
        ctx.save_for_backward(x_TD, weight_OD, a_RD, b_Or, h_TR, keys_T, salt)
        ctx.places, ctx.scale, ctx.drop = places, scale, drop
        return y_TO

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_OD, a_RD, b_Or, h_TR, keys_T, salt = ctx.saved_tensors
        for_x = ctx.needs_input_grad[0]
        dh_TR, db_Or = adapter_outputs_backward_op(dy_TO, h_TR, b_Or, ctx.places, ctx.scale)
        dx_TD, da_RD = dropped_linear_backward_op(dh_TR, x_TD, a_RD, keys_T, salt, ctx.drop, for_x)
        dx_TD = dx_TD.addmm_(dy_TO, weight_OD) if for_x else None
        return dx_TD, None, da_RD.to(ctx.dtypes[0]), db_Or.to(ctx.dtypes[1]), *[None] * 5


# ---- what the model calls


def adapted_linear(
    x_TD: Tensor,
    weight_OD: Tensor,
    a_RD: Tensor,
    b_Or: Tensor,
    places: Sequence[Slices],
    scale: float,
    keys_T: Tensor | None = None,
    salt: Tensor | None = None,
    drop: int = 0,
) -> Tensor:
    """x W^T with what the adapters add, which lie at `places`, in the order of their columns: x [T, D] and W [O, D] in
    one dtype, fp32 or bf16 -> [T, O]. A and B may be fp32 beside bf16, and so are their gradients then.

    With drop > 0 the adapters see x without a share of `drop` / 65,536 of its elements. `keys_T`: int64, 64 random bits
    for each token. `salt`: an int64 scalar of the layer's own on the host; a tensor, since numbers make torch.compile
    compile every layer for itself.
    """
    return AdaptedLinear.apply(x_TD, weight_OD, a_RD, b_Or, numbers(places), scale, keys_T, salt, drop)
