"""Root-mean-square layer normalisation (Zhang & Sennrich 2019, arXiv:1910.07467), alone and with the residual
addition before it.

    r = residual + x        n = r * s        y = n * w        s = 1 / sqrt(mean(r^2) + eps), over a row's D elements

With dy the gradient of y, and dr that of r from elsewhere (the residual stream):

    dx = dresidual = dr + s * (w dy - n * mean(n w dy))        dw = sum over rows of n dy

Everything between loading and storing is fp32; the sum r is rounded before it is normalised, so that a recomputed norm
sees what the stream holds.

Shapes in names: T tokens, D elements of a row, P programs of the backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logtrain_kernels.cost import Cost, nbytes
from logtrain_kernels.device import is_plain, num_processors, uses_triton
from logtrain_kernels.language import constexpr


def rms_norm_reference(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """`rms_norm` in plain PyTorch."""
    x32_TD = x_TD.float()
    scale_T1 = (x32_TD.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (x32_TD * scale_T1 * weight_D.float()).to(x_TD.dtype)


def add_rms_norm_reference(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` in plain PyTorch."""
    sum_TD = residual_TD + x_TD
    return sum_TD, rms_norm_reference(sum_TD, weight_D, eps)


# ---- elsewhere than on a GPU: what the kernels do, pass by pass over rows that the caches hold


def normalise(r_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """-> (y [T, D], scale fp32 [T])"""
    r32_TD = r_TD.float()
    scale_T = torch.linalg.vector_norm(r32_TD, dim=1).square_().div_(r_TD.shape[1]).add_(eps).rsqrt_()
    return (r32_TD * scale_T[:, None]).mul_(weight_D.float()).to(r_TD.dtype), scale_T


def normalise_backward(
    dy_TD: Tensor, dr_TD: Tensor | None, r_TD: Tensor, weight_D: Tensor, scale_T: Tensor, for_weight: bool
) -> tuple[Tensor, Tensor]:
    """What `rms_norm_backward_op` gives."""
    dy32_TD, weight32_D, scale_T1 = dy_TD.float(), weight_D.float(), scale_T[:, None]
    n_TD = r_TD.float() * scale_T1
    dx_TD = dy32_TD * n_TD
    dw_D = dx_TD.sum(0).to(weight_D.dtype) if for_weight else dy_TD.new_empty(0)
    mean_T1 = (dx_TD @ weight32_D).div_(-len(weight_D))[:, None]
    torch.mul(dy32_TD, weight32_D, out=dx_TD).addcmul_(n_TD, mean_T1).mul_(scale_T1)
    if dr_TD is not None:
        dx_TD.add_(dr_TD)
    return dx_TD.to(dy_TD.dtype), dw_D


# ---- Triton, forward: a program takes a row


@triton.jit
def summed_row(x_TD, residual_TD, sum_TD, scale_T, eps, row, at, inside, D: constexpr, ADD: constexpr):
    """-> a row of x, or of residual + x, in fp32, and its scale; writes both, but not x"""
    r = tl.load(x_TD + at, mask=inside, other=0.0)
    if ADD:
        r = (r.to(tl.float32) + tl.load(residual_TD + at, mask=inside, other=0.0)).to(sum_TD.dtype.element_ty)
        tl.store(sum_TD + at, r, mask=inside)
    r = r.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(r * r) / D + eps)
    tl.store(scale_T + row, scale)
    return r, scale


@triton.jit
def rms_norm_forward(
    x_TD, residual_TD, weight_D, sum_TD, y_TD, scale_T, eps, D: constexpr, ADD: constexpr, BLOCK: constexpr
):
    """Normalises one row of x, or of residual + x."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)  # T * D may pass 2^31
    inside, at = column < D, row * D + column
    r, scale = summed_row(x_TD, residual_TD, sum_TD, scale_T, eps, row, at, inside, D, ADD)
    weight = tl.load(weight_D + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_TD + at, (r * scale * weight).to(y_TD.dtype.element_ty), mask=inside)


# ---- Triton, backward: a program walks over rows and sums its part of dw in registers, so that dw costs no atomics and
# no second pass: only [P, D] partial sums


@triton.jit
def rms_norm_backward(
    dy_TD, dr_TD, r_TD, weight_D, scale_T, dx_TD, dw_PD, T,
    D: constexpr, ADD: constexpr, FOR_WEIGHT: constexpr, BLOCK: constexpr, STAGES: constexpr,
):  # fmt: skip
    """Gives dx of every P-th row, with dr if ADD, and the sum of these rows' parts of dw."""
    column = tl.arange(0, BLOCK)
    inside = column < D
    weight = tl.load(weight_D + column, mask=inside, other=0.0).to(tl.float32)
    dw = tl.zeros((BLOCK,), dtype=tl.float32)
    stride = tl.full((), D, dtype=tl.int64)
    for row in tl.range(tl.program_id(0), T, tl.num_programs(0), num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        at = row * stride + column
        dy = tl.load(dy_TD + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scale_T + row)
        n = tl.load(r_TD + at, mask=inside, other=0.0).to(tl.float32) * scale
        if FOR_WEIGHT:
            dw += n * dy
        dn = dy * weight
        dx = scale * (dn - n * (tl.sum(n * dn) / D))
        if ADD:
            dx += tl.load(dr_TD + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_TD + at, dx.to(dx_TD.dtype.element_ty), mask=inside)
    if FOR_WEIGHT:
        tl.store(dw_PD + tl.program_id(0) * D + column, dw, mask=inside)


def rms_norm_forward_launch(D: int) -> dict[str, int]:
    """Launch parameters of the forward. A row is one block of registers, 16 elements a thread: two 16-byte loads of
    bf16 from each input are in flight. On sm_90 that takes 32 to 40 registers, so that 48 to 64 of 64 warps are
    resident.
    """
    block = triton.next_power_of_2(D)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}


def rms_norm_backward_launch(D: int, row_bytes: int) -> dict[str, int]:
    """Launch parameters of the backward; `row_bytes` are those of a row of all inputs together.

    A thread has 8 elements, since the sum of dw takes registers too (48 to 64 on sm_90). The loop copies 32 KiB of rows
    into shared memory ahead of their use, so that it should not have to wait: 3.35 TB/s for the microsecond that a load
    takes are 25 KB a processor.
    """
    block = triton.next_power_of_2(D)
    stages = max(2, 1 + triton.cdiv(32 * 1024, row_bytes)) if row_bytes <= 96 * 1024 else 1
    return {"BLOCK": block, "STAGES": stages, "num_warps": min(max(block // 256, 1), 32)}


def rms_norm_backward_programs(dy_TD: Tensor) -> int:
    """Programs of the backward. One a processor keeps the partial sums at 2% of the traffic at T = 8,192."""
    return min(len(dy_TD), num_processors(dy_TD.device))


# ---- registered operations


@torch.library.custom_op("logtrain::rms_norm", mutates_args=())
def rms_norm_op(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """-> (y [T, D], scale fp32 [T])"""
    if not uses_triton(x_TD):
        return normalise(x_TD, weight_D, eps)
    x_TD, weight_D = x_TD.contiguous(), weight_D.contiguous()
    y_TD, scale_T = torch.empty_like(x_TD), x_TD.new_empty(len(x_TD), dtype=torch.float32)
    T, D = x_TD.shape
    if T:
        forward, launch = rms_norm_forward[(T,)], rms_norm_forward_launch(D)
        forward(x_TD, x_TD, weight_D, x_TD, y_TD, scale_T, eps, D=D, ADD=False, **launch)
    return y_TD, scale_T


@rms_norm_op.register_fake
def _(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x_TD.new_empty(x_TD.shape), x_TD.new_empty(len(x_TD), dtype=torch.float32)


@torch.library.custom_op("logtrain::add_rms_norm", mutates_args=())
def add_rms_norm_op(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """-> (residual + x [T, D], y [T, D], scale fp32 [T])"""
    if not uses_triton(x_TD):
        return (sum_TD := residual_TD + x_TD), *normalise(sum_TD, weight_D, eps)
    x_TD, residual_TD, weight_D = x_TD.contiguous(), residual_TD.contiguous(), weight_D.contiguous()
    sum_TD, y_TD = torch.empty_like(x_TD), torch.empty_like(x_TD)
    scale_T = x_TD.new_empty(len(x_TD), dtype=torch.float32)
    T, D = x_TD.shape
    if T:
        launch = rms_norm_forward_launch(D)
        rms_norm_forward[(T,)](x_TD, residual_TD, weight_D, sum_TD, y_TD, scale_T, eps, D=D, ADD=True, **launch)
    return sum_TD, y_TD, scale_T


@add_rms_norm_op.register_fake
def _(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return x_TD.new_empty(x_TD.shape), x_TD.new_empty(x_TD.shape), x_TD.new_empty(len(x_TD), dtype=torch.float32)


@torch.library.custom_op("logtrain::rms_norm_backward", mutates_args=())
def rms_norm_backward_op(
    dy_TD: Tensor, dr_TD: Tensor | None, r_TD: Tensor, weight_D: Tensor, scale_T: Tensor, for_weight: bool
) -> tuple[Tensor, Tensor]:
    """-> (dx [T, D], dw [D], or nothing where it is not wanted); `dr`: what else reaches r, None for nothing."""
    if not uses_triton(dy_TD):
        return normalise_backward(dy_TD, dr_TD, r_TD, weight_D, scale_T, for_weight)
    dy_TD, r_TD, weight_D = dy_TD.contiguous(), r_TD.contiguous(), weight_D.contiguous()
    dr_TD = None if dr_TD is None else dr_TD.contiguous()
    T, D = dy_TD.shape
    programs = rms_norm_backward_programs(dy_TD)
    dx_TD = torch.empty_like(dy_TD)
    dw_PD = dy_TD.new_empty(programs, D, dtype=torch.float32) if for_weight else dy_TD.new_empty(0)
    if T:
        tensors = (dy_TD, dr_TD, r_TD, weight_D, scale_T, dx_TD, dw_PD)
        launch = rms_norm_backward_launch(D, (2 + (dr_TD is not None)) * D * dy_TD.element_size())
        rms_norm_backward[(programs,)](*tensors, T, D=D, ADD=dr_TD is not None, FOR_WEIGHT=for_weight, **launch)
    return dx_TD, dw_PD.sum(0).to(weight_D.dtype) if for_weight else dw_PD


@rms_norm_backward_op.register_fake
def _(dy_TD, dr_TD, r_TD, weight_D, scale_T, for_weight) -> tuple[Tensor, Tensor]:
    return dy_TD.new_empty(dy_TD.shape), weight_D.new_empty(weight_D.shape) if for_weight else dy_TD.new_empty(0)


def save_sum(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    """Keep for the backward of both operations the normalised rows [T, D] (x, or the sum that is the first of three
    outputs) and their scales [T].
    """
    ctx.set_materialize_grads(False)  # the last norm's sum goes nowhere
    *sum_or_nothing, _y_TD, scale_T = output
    ctx.save_for_backward((sum_or_nothing or inputs)[0], inputs[-2], scale_T)


def norm_gradients(ctx, dy_TD: Tensor | None, dr_TD: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """-> (dx, dw), None for what is not wanted."""
    if dy_TD is None:
        return dr_TD, None
    r_TD, weight_D, scale_T = ctx.saved_tensors
    for_weight = ctx.needs_input_grad[-2]  # a frozen one's is not computed
    dx_TD, dw_D = rms_norm_backward_op(dy_TD, dr_TD, r_TD, weight_D, scale_T, for_weight)
    return dx_TD, dw_D if for_weight else None


def rms_norm_gradients(ctx, dy_TD: Tensor | None, _dscale) -> tuple[Tensor | None, ...]:
    """The gradients of `rms_norm_op`'s inputs."""
    return *norm_gradients(ctx, dy_TD, None), None


def add_rms_norm_gradients(ctx, dr_TD: Tensor | None, dy_TD: Tensor | None, _dscale) -> tuple[Tensor | None, ...]:
    """The gradients of `add_rms_norm_op`'s inputs."""
    dx_TD, dw_D = norm_gradients(ctx, dy_TD, dr_TD)
    return dx_TD, dx_TD, dw_D, None


rms_norm_op.register_autograd(rms_norm_gradients, setup_context=save_sum)
add_rms_norm_op.register_autograd(add_rms_norm_gradients, setup_context=save_sum)


# ---- what the operations cost; recomputation does all of them again


def rms_norm_cost(x_TD: Tensor, weight_D: Tensor, eps: float) -> Cost:
    """The cost of `rms_norm_op`."""
    return Cost(read=nbytes(x_TD, weight_D), written=nbytes(x_TD) + 4 * len(x_TD))


def add_rms_norm_cost(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> Cost:
    """The cost of `add_rms_norm_op`."""
    return Cost(read=nbytes(x_TD, residual_TD, weight_D), written=2 * nbytes(x_TD) + 4 * len(x_TD))


def rms_norm_backward_cost(
    dy_TD: Tensor, dr_TD: Tensor | None, r_TD: Tensor, weight_D: Tensor, scale_T: Tensor, for_weight: bool
) -> Cost:
    """The cost of `rms_norm_backward_op`: dw is summed by each program, then over programs, in fp32; where the weight
    is bf16, a third kernel rounds it.
    """
    read, written = nbytes(dy_TD, dr_TD, r_TD, weight_D, scale_T), nbytes(dy_TD)
    if not for_weight:
        return Cost(read=read, written=written)
    dw_D, rounded = 4 * len(weight_D), weight_D.dtype != torch.float32
    dw_PD = rms_norm_backward_programs(dy_TD) * dw_D
    return Cost(
        read=read + dw_PD + rounded * dw_D,
        written=written + dw_PD + dw_D + rounded * nbytes(weight_D),
        launches=2 + rounded,
        workspace=dw_PD + rounded * dw_D,
    )


# ---- what the model calls


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Normalise each row of x. [T, D] and [D], fp32 or bf16 -> [T, D] in x's dtype."""
    return rms_norm_op(x_TD, weight_D, eps)[0]


def add_rms_norm(x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add a sublayer's output x to the residual stream and normalise the sum: -> (new residual, its norm), both as x.

    `residual_TD = None` starts the stream: x becomes the residual.
    """
    if residual_TD is None:  # the backward of this one, of all norms of a model, adds in a pass of its own
        return x_TD, rms_norm(x_TD, weight_D, eps)
    assert x_TD.dtype == residual_TD.dtype, (x_TD.dtype, residual_TD.dtype)
    if is_plain(x_TD):
        return (sum_TD := residual_TD + x_TD), normalise(sum_TD, weight_D, eps)[0]
    return add_rms_norm_op(x_TD, residual_TD, weight_D, eps)[:2]
