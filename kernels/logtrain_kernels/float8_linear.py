"""A linear layer whose products are of float8 matrices (float8.py), its weight in higher precision beside it:

    y = x W^T        dx = dy W        dW = dy^T x        x [T, D], W [O, D], y [T, O]

Tensorwise, x, W and dy are cast once each. Rowwise, x has a scale for each token and W one for each output, which can
be taken out of y's product, but not out of those of the backward, which sum over tokens and over outputs. There they go
into the other operand: with x = qx / mx and W = qw / mw, rows divided,

    dx = (dy / mw) qw        dW = (dy / mx)^T qx

so that x and W are cast once here, too (others cast each a second time, by columns), and dy twice: by rows, and for dW
by columns. That is done in fp32, before the cast.

Products on GPUs sum over the last dimension of both operands, so W, and for dW x and dy, are needed transposed.
Tensorwise the cast writes x and dy both ways, and only x^T is kept for the backward. Where a forward is done twice
(activation recomputation) its first pass writes x alone and its second one x^T alone.

Shapes in names: T tokens, D in features, O out features.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from logtrain_kernels.float8 import Float8, Scaling, float8_product
from logtrain_kernels.float8_cast import float8_cast, float8_weight
from logtrain_kernels.float8_pair import Float8Pair, float8_pair, float8_transposed


class Float8Recipe(NamedTuple):
    """How a layer's products are done in float8."""

    scaling: Scaling = "tensorwise"
    """One scale for a matrix, or one for each row."""
    weight_gradient: bool = True
    """Whether dW is a product in float8, too, or one in the precision of x."""


class Pass(NamedTuple):
    """What a pass of a forward does; of a recomputed one there are two."""

    multiplies: bool = True
    """Its products are computed, and not kept ones of the first pass."""
    saves: bool = True
    """A backward follows that has no other pass before it."""


ONLY = Pass()


class Float8Linear(torch.autograd.Function):
    """`float8_linear`; the products are PyTorch's own, so that whatever counts or keeps them sees them."""

    @staticmethod
    def forward(ctx, x_TD, weight_OD, values_OD, inverse, recipe: Float8Recipe, of: Pass):
        for_weight, ctx.recipe = ctx.needs_input_grad[1], recipe
        if recipe.scaling == "rowwise":
            qx = float8_cast(x_TD, "rowwise")
            saved = tuple(qx)
        else:
            pair = float8_pair(x_TD, of.multiplies, of.saves and for_weight and recipe.weight_gradient)
            qx, saved = pair.straight, tuple(pair.turned)
        saved = saved if recipe.weight_gradient else (x_TD,)
        ctx.save_for_backward(values_OD, inverse, *(saved if for_weight else ()))
        return float8_product(qx, Float8(values_OD, inverse), x_TD.dtype, fast=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_TO: Tensor) -> tuple[Tensor | None, ...]:
        values_OD, inverse, *of_x = ctx.saved_tensors
        recipe, (for_x, for_weight, *_) = ctx.recipe, ctx.needs_input_grad
        weight, dx_TD, dw_OD = Float8(values_OD, inverse), None, None
        in_float8 = for_weight and recipe.weight_gradient
        qdy = float8_pair(dy_TO, for_x, in_float8) if recipe.scaling == "tensorwise" else None
        if for_x:
            dx_TD = input_gradient(dy_TO, weight, recipe, qdy)
        if in_float8:
            dw_OD = weight_gradient(dy_TO, Float8(*of_x), qdy)
        elif for_weight:
            dw_OD = dy_TO.T @ of_x[0]
        return dx_TD, dw_OD, None, None, None, None


def input_gradient(dy_TO: Tensor, weight: Float8, recipe: Float8Recipe, qdy: Float8Pair | None = None) -> Tensor:
    """dx = dy W [T, D] in float8; `qdy`: dy in float8, where it was cast before."""
    values_DO, inverse = float8_transposed(weight.values), weight.inverse
    if recipe.scaling == "rowwise":
        q, inverse = float8_cast(dy_TO, "rowwise", inverse[:, 0]), torch.ones_like(inverse[0, 0])
    else:
        q = (qdy or float8_pair(dy_TO, transposed=False)).straight
    return float8_product(q, Float8(values_DO, inverse), dy_TO.dtype, fast=False)


def weight_gradient(dy_TO: Tensor, qx: Float8, qdy: Float8Pair | None) -> Tensor:
    """dW = dy^T x [O, D] in float8. `qdy`: tensorwise dy in float8, beside which x is transposed; None: x has a scale
    for each row.
    """
    if qdy:
        return float8_product(qdy.turned, qx, dy_TO.dtype, fast=False)
    qdy_OT = float8_cast(dy_TO.T.contiguous(), "rowwise", qx.inverse[:, 0])
    qx_DT = Float8(float8_transposed(qx.values), torch.ones_like(qx.inverse[0, 0]))
    return float8_product(qdy_OT, qx_DT, dy_TO.dtype, fast=False)


def float8_linear(
    x_TD: Tensor, weight_OD: Tensor, recipe: Float8Recipe, quantised: Float8 | None = None, of: Pass = ONLY
) -> Tensor:
    """x W^T with products in float8, forward and backward: x [T, D] and W [O, D], fp32 or bf16 -> [T, O] in x's dtype.

    `quantised`: W in float8, scaled as the recipe says, where it was cast before; then W itself is not read, and only
    gets its gradient. `of`: the pass of the forward.
    """
    quantised = quantised or float8_weight(weight_OD.detach(), recipe.scaling)
    return Float8Linear.apply(x_TD, weight_OD, *quantised, recipe, of)
