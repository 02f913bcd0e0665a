"""The parts of a block whose operands are cast to float8 where they are computed, tensorwise (float8_linear.py): a
norm with the projection to queries, keys and values behind it, and the whole feed-forward layer.

    norm_rope           r = residual + x        q, k, v = rope(norm(r) W^T)
    feed_forward        r = residual + x        h = swiglu(norm(r) U^T)        y = h W^T

Neither the norm's output nor h, nor the gradient of what rope and SwiGLU take, is ever written in higher precision.
These gradients go as float8 from the backward of rope and SwiGLU into two products each, so that either part is one
function to autograd. All is bit by bit what norm, cast, products, rope and SwiGLU give one after the other.

Shapes in names: T tokens, D model width, F feed-forward width, N query heads, K key-value heads, H head size, H2 half
of it, O = (N + 2K) H.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from logtrain_kernels.float8 import Float8, float8_product
from logtrain_kernels.float8_cast import float8_weight
from logtrain_kernels.float8_linear import ONLY, Pass
from logtrain_kernels.float8_norm import rms_norm_largest_op, rms_norm_pair_op
from logtrain_kernels.float8_pair import Float8Pair, float8_pair, float8_transposed
from logtrain_kernels.float8_rope import rope_backward_largest_op, rope_backward_pair_op
from logtrain_kernels.float8_swiglu import (
    swiglu_backward_largest_op,
    swiglu_backward_pair_op,
    swiglu_largest_op,
    swiglu_pair_op,
)
from logtrain_kernels.rms_norm import rms_norm_backward_op
from logtrain_kernels.rope import rope_op


def normed(
    x_TD: Tensor, residual_TD: Tensor | None, norm_D: Tensor, eps: float, of: Pass
) -> tuple[Tensor, Tensor, Float8Pair]:
    """-> the residual stream r, its scales [T], and its norm"""
    sum_TD, scale_T, largest = rms_norm_largest_op(x_TD, residual_TD, norm_D, eps)
    r_TD = x_TD if residual_TD is None else sum_TD
    pair = Float8Pair(*rms_norm_pair_op(r_TD, scale_T, norm_D, largest, of.multiplies, of.saves))
    return r_TD, scale_T, pair


def gradients(dy: Float8Pair, weight: Float8, x_DT: Float8, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """-> dx = dy W [T, D], dW = dy^T x [O, D], in `dtype`"""
    turned = Float8(float8_transposed(weight.values), weight.inverse)
    dx_TD = float8_product(dy.straight, turned, dtype, fast=False)
    return dx_TD, float8_product(dy.turned, x_DT, dtype, fast=False)


class NormRope(torch.autograd.Function):
    """`float8_norm_rope`, of a weight that has been cast."""

    @staticmethod
    def forward(
        ctx, x_TD: Tensor, residual_TD: Tensor | None, norm_D, eps: float, _weight_OD, values_OD, inverse,
        cos_TH2: Tensor, sin_TH2: Tensor, num_heads: int, num_kv_heads: int, of: Pass,
    ):  # fmt: skip
        r_TD, scale_T, qx = normed(x_TD, residual_TD, norm_D, eps, of)
        ctx.adds = residual_TD is not None
        ctx.save_for_backward(r_TD, scale_T, norm_D, cos_TH2, sin_TH2, values_OD, inverse, *qx.turned)
        qkv_TO = float8_product(qx.straight, Float8(values_OD, inverse), x_TD.dtype, fast=True)
        qkv_TNH = qkv_TO.unflatten(-1, (num_heads + 2 * num_kv_heads, -1))
        rope_op(qkv_TNH, cos_TH2, sin_TH2, num_heads, num_kv_heads)
        return r_TD if ctx.adds else None, *qkv_TNH.split((num_heads, num_kv_heads, num_kv_heads), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dr_TD: Tensor | None, dq_TNH: Tensor, dk_TKH: Tensor, dv_TKH: Tensor):
        r_TD, scale_T, norm_D, cos_TH2, sin_TH2, values_OD, inverse, *qx = ctx.saved_tensors
        parts = dq_TNH, dk_TKH, dv_TKH, cos_TH2, sin_TH2
        qd = Float8Pair(*rope_backward_pair_op(*parts, rope_backward_largest_op(*parts), True, True))
        dn_TD, dw_OD = gradients(qd, Float8(values_OD, inverse), Float8(*qx), dq_TNH.dtype)
        dx_TD, dnorm_D = rms_norm_backward_op(dn_TD, dr_TD, r_TD, norm_D, scale_T, True)
        return dx_TD, dx_TD if ctx.adds else None, dnorm_D, None, dw_OD, *[None] * 7


class FeedForward(torch.autograd.Function):
    """`float8_feed_forward`, of weights that have been cast."""

    @staticmethod
    def forward(
        ctx, x_TD: Tensor, residual_TD: Tensor, norm_D, eps: float,
        _up_2FD, up_values, up_inverse, _down_DF, down_values, down_inverse, of: Pass,
    ):  # fmt: skip
        r_TD, scale_T, qx = normed(x_TD, residual_TD, norm_D, eps, of)
        gate_up_T2F = float8_product(qx.straight, Float8(up_values, up_inverse), x_TD.dtype, fast=True)
        largest = swiglu_largest_op(gate_up_T2F)
        qh = Float8Pair(*swiglu_pair_op(gate_up_T2F, largest, of.multiplies, of.saves))
        weights = (up_values, up_inverse, down_values, down_inverse)
        ctx.save_for_backward(r_TD, scale_T, norm_D, *weights, *qx.turned, gate_up_T2F, *qh.turned)
        return r_TD, float8_product(qh.straight, Float8(down_values, down_inverse), x_TD.dtype, fast=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, dr_TD: Tensor, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        r_TD, scale_T, norm_D, *rest, gate_up_T2F, h_values, h_inverse = ctx.saved_tensors
        up, down, qx = Float8(*rest[:2]), Float8(*rest[2:4]), Float8(*rest[4:])
        dh_TF, ddown_DF = gradients(float8_pair(dy_TD), down, Float8(h_values, h_inverse), dy_TD.dtype)
        largest = swiglu_backward_largest_op(dh_TF, gate_up_T2F)
        qd = Float8Pair(*swiglu_backward_pair_op(dh_TF, gate_up_T2F, largest, True, True))
        del dh_TF, gate_up_T2F
        dn_TD, dup_2FD = gradients(qd, up, qx, dy_TD.dtype)
        dx_TD, dnorm_D = rms_norm_backward_op(dn_TD, dr_TD, r_TD, norm_D, scale_T, True)
        return dx_TD, dx_TD, dnorm_D, None, dup_2FD, None, None, ddown_DF, None, None, None


def float8_norm_rope(
    x_TD: Tensor,
    residual_TD: Tensor | None,
    norm_D: Tensor,
    eps: float,
    qkv: tuple[Tensor, Float8 | None],
    rotations: tuple[Tensor, Tensor],
    heads: tuple[int, int],
    of: Pass = ONLY,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`add_rms_norm`, the projection of its norm to queries, keys and values in float8, tensorwise, and `rope`: -> (new
    residual [T, D], q [T, N, H], k [T, K, H], v [T, K, H]), in x's dtype, fp32 or bf16. `qkv` [O, D]: the matrix, and
    what it is in float8 where it was cast before; `rotations`: the tables of `rope_tables`, `heads`: (N, K); `of` is as
    in `float8_linear`. q, k and v are views of one tensor.
    """
    weight_OD, cast = qkv
    cast = cast or float8_weight(weight_OD.detach(), "tensorwise")
    sum_TD, *parts = NormRope.apply(x_TD, residual_TD, norm_D, eps, weight_OD, *cast, *rotations, *heads, of)
    return x_TD if residual_TD is None else sum_TD, *parts


def float8_feed_forward(
    x_TD: Tensor,
    residual_TD: Tensor,
    norm_D: Tensor,
    eps: float,
    gate_up: tuple[Tensor, Float8 | None],
    down: tuple[Tensor, Float8 | None],
    of: Pass = ONLY,
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` and the gated feed-forward layer behind it, its products in float8, tensorwise: -> (new residual,
    the layer's output), both [T, D] in x's dtype, fp32 or bf16. `gate_up` [2F, D], `down` [D, F]: each matrix, and what
    it is in float8 where it was cast before; `of` is as in `float8_linear`.
    """
    weights = [(weight, *(cast or float8_weight(weight.detach(), "tensorwise"))) for weight, cast in (gate_up, down)]
    return FeedForward.apply(x_TD, residual_TD, norm_D, eps, *weights[0], *weights[1], of)
