"""SwiGLU (Shazeer 2020, arXiv:2002.05202): y = silu(g) * u, where silu(g) = g * sigmoid(g).

    du = dy * silu(g)        dg = dy * u * sigmoid(g) * (1 + g * (1 - sigmoid(g)))

Gate g and up u are the halves of one projection's output. Only that output is kept for the backward, which computes
the sigmoid again and writes both gradients over it: g and u are not needed any more.

Shapes in names: T tokens, F feed-forward width, 2F gate beside up. All are of one dtype, bf16 or fp32.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from logtrain_kernels.cost import Cost, nbytes
from logtrain_kernels.device import is_plain, uses_triton
from logtrain_kernels.language import constexpr


def swiglu_reference(gate_up_T2F: Tensor) -> Tensor:
    """`swiglu` in plain PyTorch."""
    gate_TF, up_TF = gate_up_T2F.float().chunk(2, dim=-1)
    return (F.silu(gate_TF) * up_TF).to(gate_up_T2F.dtype)


# ---- elsewhere than on a GPU: what the kernels do, pass by pass


def gate(gate_up_T2F: Tensor) -> Tensor:
    """-> y [T, F]"""
    gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
    return F.silu(gate_TF.float()).mul_(up_TF).to(gate_up_T2F.dtype)


def gate_backward(dy_TF: Tensor, gate_up_T2F: Tensor) -> None:
    """What `swiglu_backward_op` does."""
    gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
    dy32_TF, gate32_TF = dy_TF.float(), gate_TF.float()
    dsilu_TF = dy32_TF * up_TF
    up_TF.copy_(F.silu(gate32_TF).mul_(dy32_TF))
    gate_TF.copy_(torch.ops.aten.silu_backward(dsilu_TF, gate32_TF))


# ---- Triton: a program takes BLOCK columns of one row


@triton.jit
def halves(gate_up_T2F, at, F, inside):
    """-> elements of g, which begin at `at`, and those of u, in fp32"""
    g = tl.load(gate_up_T2F + at, mask=inside, other=0.0).to(tl.float32)
    return g, tl.load(gate_up_T2F + at + F, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def gated(g, u):
    """-> y"""
    return g * tl.sigmoid(g) * u


@triton.jit
def gated_backward(dy, g, u):
    """-> dg, du"""
    sigmoid = tl.sigmoid(g)
    return dy * u * sigmoid * (1 + g * (1 - sigmoid)), dy * g * sigmoid


@triton.jit
def swiglu_forward(gate_up_T2F, y_TF, F, BLOCK: constexpr):
    """Gives BLOCK elements of y."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    g, u = halves(gate_up_T2F, row * 2 * F + column, F, column < F)
    tl.store(y_TF + row * F + column, gated(g, u).to(y_TF.dtype.element_ty), mask=column < F)


@triton.jit
def swiglu_backward(dy_TF, gate_up_T2F, F, BLOCK: constexpr):
    """Writes dg and du over BLOCK elements of g and u."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at = column < F, row * 2 * F + column
    dy = tl.load(dy_TF + row * F + column, mask=inside, other=0.0).to(tl.float32)
    g, u = halves(gate_up_T2F, at, F, inside)
    dg, du = gated_backward(dy, g, u)
    dtype = gate_up_T2F.dtype.element_ty
    tl.store(gate_up_T2F + at, dg.to(dtype), mask=inside)
    tl.store(gate_up_T2F + at + F, du.to(dtype), mask=inside)


# A thread has 16 elements and 32 registers on sm_90 (38 in the backward), so that 64 (48) of 64 warps are resident. F
# of every Llama is a multiple of the block: no lane is idle.
SWIGLU_LAUNCH = {"BLOCK": 2048, "num_warps": 4}


# ---- registered operations


@torch.library.custom_op("logtrain::swiglu", mutates_args=())
def swiglu_op(gate_up_T2F: Tensor) -> Tensor:
    """-> y [T, F]"""
    if not uses_triton(gate_up_T2F):
        return gate(gate_up_T2F)
    gate_up_T2F = gate_up_T2F.contiguous()
    T, F = len(gate_up_T2F), gate_up_T2F.shape[1] // 2
    y_TF = gate_up_T2F.new_empty(T, F)
    if T:
        grid = (T, triton.cdiv(F, SWIGLU_LAUNCH["BLOCK"]))
        swiglu_forward[grid](gate_up_T2F, y_TF, F, **SWIGLU_LAUNCH)
    return y_TF


@swiglu_op.register_fake
def _(gate_up_T2F: Tensor) -> Tensor:
    return gate_up_T2F.new_empty(len(gate_up_T2F), gate_up_T2F.shape[1] // 2)


@torch.library.custom_op("logtrain::swiglu_backward_", mutates_args={"gate_up_T2F"})
def swiglu_backward_op(dy_TF: Tensor, gate_up_T2F: Tensor) -> None:
    """Turns gate_up into its gradient."""
    assert gate_up_T2F.is_contiguous(), "in place, so it cannot make a copy"
    if not uses_triton(dy_TF):
        gate_backward(dy_TF, gate_up_T2F)
    elif len(dy_TF):
        T, F = dy_TF.shape
        grid = (T, triton.cdiv(F, SWIGLU_LAUNCH["BLOCK"]))
        swiglu_backward[grid](dy_TF.contiguous(), gate_up_T2F, F, **SWIGLU_LAUNCH)


@swiglu_backward_op.register_fake
def _(dy_TF: Tensor, gate_up_T2F: Tensor) -> None:
    pass


def save_gate_up(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
    """Keep gate and up [T, 2F] for the backward."""
    ctx.save_for_backward(inputs[0])


@once_differentiable
def swiglu_gradients(ctx, dy_TF: Tensor) -> Tensor:
    """The gradient of `swiglu_op`'s input."""
    gate_up_T2F = ctx.saved_tensors[0].contiguous()  # a second backward finds it changed, and autograd refuses
    swiglu_backward_op(dy_TF, gate_up_T2F)
    return gate_up_T2F


swiglu_op.register_autograd(swiglu_gradients, setup_context=save_gate_up)


# ---- what the operations cost; recomputation does the first again


def swiglu_cost(gate_up_T2F: Tensor) -> Cost:
    """The cost of `swiglu_op`."""
    return Cost(read=nbytes(gate_up_T2F), written=nbytes(gate_up_T2F) // 2)


def swiglu_backward_cost(dy_TF: Tensor, gate_up_T2F: Tensor) -> Cost:
    """The cost of `swiglu_backward_op`."""
    return Cost(read=nbytes(dy_TF, gate_up_T2F), written=nbytes(gate_up_T2F))


# ---- what the model calls


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """The gated activation of a fused projection: [T, 2F] (gate first, then up), fp32 or bf16 -> [T, F] in the same
    dtype, fp32 inside.

    The backward works in place of gate_up, so it can run once, and nothing else may keep gate_up.
    """
    return gate(gate_up_T2F) if is_plain(gate_up_T2F) else swiglu_op(gate_up_T2F)
