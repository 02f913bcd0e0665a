"""Every operation described once: its inputs at a model's sizes, the least it can move, and who computes it how.

An operation is a function (sizes, T, device) -> `Work`. Its calls are what is compiled, counted and timed, so that no
launch parameter is written a second time. Of Liger-Kernel we take the variant that does the same work and moves the
least: norms and SwiGLU may overwrite what is not needed any more, and SwiGLU is the one on the fused buffer. Tensors
are bf16, rotary tables and saved scales fp32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from liger_kernel.ops import cross_entropy as liger_cross_entropy
from liger_kernel.ops import fused_add_rms_norm as liger_add_rms_norm
from liger_kernel.ops import rms_norm as liger_rms_norm
from liger_kernel.ops import rope as liger_rope
from liger_kernel.ops import swiglu as liger_swiglu
from torch import Tensor

from benchmarks.kernels.shapes import Shape
from logtrain_kernels.linear_cross_entropy import softmax_gradient_op, softmax_gradient_reference
from logtrain_kernels.rms_norm import (
    add_rms_norm_op,
    add_rms_norm_reference,
    rms_norm_backward_op,
    rms_norm_op,
    rms_norm_reference,
)
from logtrain_kernels.rope import rope_backward_op, rope_op, rope_reference
from logtrain_kernels.swiglu import swiglu_backward_op, swiglu_op, swiglu_reference

EPS = 1e-5
LIGER_CASTING = "llama"
LIBRARIES = ("logtrain", "liger")


@dataclass(frozen=True, kw_only=True)
class Work:
    logtrain: Callable[[], object]
    liger: Callable[[], object]
    eager: Callable[[], object]  # the same mathematics in plain PyTorch; for a backward, the forward it belongs to
    leaves: tuple[Tensor, ...] = ()  # of a backward: what plain PyTorch differentiates by, and what it starts from
    gradients: tuple[Tensor, ...] = ()
    bytes_minimum: dict[str, int]  # by library: each input read once, each output written once
    note: str = ""


Operation = Callable[[Shape, int, str], Work]


def size(*tensors: Tensor) -> int:
    return sum(x.nbytes for x in tensors)


def both(minimum: int) -> dict[str, int]:
    return dict.fromkeys(LIBRARIES, minimum)


def normal(*shape: int, device: str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def rms_norm(s: Shape, T: int, device: str) -> Work:
    x, w = normal(T, s.D, device=device), normal(s.D, device=device)
    return Work(
        logtrain=lambda: rms_norm_op(x, w, EPS),
        liger=lambda: liger_rms_norm.rms_norm_forward(x, w, EPS, 0.0, LIGER_CASTING, None),
        eager=lambda: rms_norm_reference(x, w, EPS),
        bytes_minimum=both(size(x, w) + size(x)),
    )


def rms_norm_backward(s: Shape, T: int, device: str) -> Work:
    dy, x, w = normal(T, s.D, device=device), normal(T, s.D, device=device), normal(s.D, device=device)
    scale, (block, warps) = torch.ones(T, device=device), liger_rms_norm.calculate_settings(s.D)
    return Work(
        logtrain=lambda: rms_norm_backward_op(dy, None, x, w, scale),
        liger=lambda: liger_rms_norm.rms_norm_backward(
            dy, x, w, scale, 0.0, liger_rms_norm._str_to_casting_mode[LIGER_CASTING], block, warps, True, None
        ),
        eager=lambda: rms_norm_reference(x, w, EPS),
        leaves=(x, w),
        gradients=(dy,),
        bytes_minimum=both(size(dy, x, w) + size(x, w)),
    )


def add_rms_norm(s: Shape, T: int, device: str) -> Work:
    x, r, w = normal(T, s.D, device=device), normal(T, s.D, device=device), normal(s.D, device=device)
    return Work(
        logtrain=lambda: add_rms_norm_op(x, r, w, EPS),
        liger=lambda: liger_add_rms_norm.fused_add_rms_norm_forward(x, r, w, EPS, 0.0, LIGER_CASTING),
        eager=lambda: add_rms_norm_reference(x, r, w, EPS),
        bytes_minimum=both(size(x, r, w) + size(x, r)),
    )


def add_rms_norm_backward(s: Shape, T: int, device: str) -> Work:
    dy, dr, r, w = *(normal(T, s.D, device=device) for _ in range(3)), normal(s.D, device=device)
    scale, (block, warps) = torch.ones(T, device=device), liger_rms_norm.calculate_settings(s.D)
    return Work(
        logtrain=lambda: rms_norm_backward_op(dy, dr, r, w, scale),
        liger=lambda: liger_add_rms_norm.fused_add_rms_norm_backward(
            dy, dr, r, w, scale, 0.0, liger_add_rms_norm._str_to_casting_mode[LIGER_CASTING], block, warps, 2, True
        ),
        eager=lambda: add_rms_norm_reference(r, torch.zeros_like(r), w, EPS),
        leaves=(r, w),
        gradients=(dr, dy),
        bytes_minimum=both(size(dy, dr, r, w) + size(r, w)),
    )


def rope(s: Shape, T: int, device: str) -> Work:
    qkv = normal(T, s.N + 2 * s.K, s.H, device=device)
    q, k = (normal(1, T, heads, s.H, device=device).transpose(1, 2) for heads in (s.N, s.K))
    cos, sin = (normal(T, s.H // 2, device=device, dtype=torch.float32) for _ in range(2))
    return Work(
        logtrain=lambda: rope_op(qkv, cos, sin, s.N, s.K),
        liger=lambda: liger_rope.rope_forward(q, k, cos, sin, rotary_dim=s.H),
        eager=lambda: rope_reference(qkv, cos, sin, s.N, s.K),
        bytes_minimum=both(size(q, k, cos, sin) + size(q, k)),
        note="liger: on q and k of separate projections; parts of a fused one it copies first, which is not counted",
    )


def rope_backward(s: Shape, T: int, device: str) -> Work:
    dq, dk, dv = (normal(T, heads, s.H, device=device) for heads in (s.N, s.K, s.K))
    cos, sin = (normal(T, s.H // 2, device=device, dtype=torch.float32) for _ in range(2))
    dq_, dk_ = dq[None].transpose(1, 2), dk[None].transpose(1, 2)
    qkv = normal(T, s.N + 2 * s.K, s.H, device=device)
    joined = size(dq, dk, dv)
    return Work(
        logtrain=lambda: rope_backward_op(dq, dk, dv, cos, sin),
        liger=lambda: liger_rope.rope_backward(dq_, dk_, cos, sin, rotary_dim=s.H),
        eager=lambda: rope_reference(qkv, cos, sin, s.N, s.K),
        leaves=(qkv,),
        gradients=(dq, dk, dv),
        bytes_minimum={"logtrain": size(cos, sin) + 2 * joined, "liger": size(cos, sin) + 2 * size(dq, dk)},
        note="logtrain: dv too, joined with dq and dk for the fused projection; liger leaves them apart, in place",
    )


def swiglu(s: Shape, T: int, device: str) -> Work:
    gate_up = normal(T, 2 * s.F, device=device)
    return Work(
        logtrain=lambda: swiglu_op(gate_up),
        liger=lambda: liger_swiglu.swiglu_fused_gate_up_forward(gate_up),
        eager=lambda: swiglu_reference(gate_up),
        bytes_minimum=both(size(gate_up) + size(gate_up) // 2),
    )


def swiglu_backward(s: Shape, T: int, device: str) -> Work:
    gate_up, dy = normal(T, 2 * s.F, device=device), normal(T, s.F, device=device)
    return Work(
        logtrain=lambda: swiglu_backward_op(dy, gate_up),
        liger=lambda: liger_swiglu.swiglu_fused_gate_up_backward(gate_up, dy, in_place=True),
        eager=lambda: swiglu_reference(gate_up),
        leaves=(gate_up,),
        gradients=(dy,),
        bytes_minimum=both(size(dy, gate_up) + size(gate_up)),
    )


def softmax(s: Shape, T: int, device: str, with_gradient: bool) -> Work:
    """T here: the tokens of one chunk of logits."""
    logits, labels = normal(T, s.V, device=device), torch.randint(s.V, (T,), device=device)
    logits.requires_grad_(with_gradient)  # by this Liger decides
    return Work(
        logtrain=lambda: softmax_gradient_op(logits, labels, with_gradient),
        liger=lambda: liger_cross_entropy.cross_entropy_forward(
            logits, labels, None, -100, 0.0, 0.0, "sum", None, False
        ),
        eager=lambda: softmax_gradient_reference(logits.detach(), labels, with_gradient),
        bytes_minimum=both(size(logits, labels) + (size(logits) if with_gradient else 0) + 4 * T),
        note="reads the logits twice: a token's do not fit the registers of a program" if with_gradient else "",
    )


def softmax_gradient(s: Shape, T: int, device: str) -> Work:
    return softmax(s, T, device, True)


def softmax_loss(s: Shape, T: int, device: str) -> Work:
    return softmax(s, T, device, False)


OPERATIONS = (
    rms_norm,
    rms_norm_backward,
    add_rms_norm,
    add_rms_norm_backward,
    rope,
    rope_backward,
    swiglu,
    swiglu_backward,
    softmax_gradient,
    softmax_loss,
)
