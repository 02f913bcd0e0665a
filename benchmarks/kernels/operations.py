"""Every operation of a Llama that moves memory rather than multiplies matrices, ours and Liger-Kernel's.

An operation is a function of sizes, T and device. Its calls are what is compiled, counted and timed, so that no launch
parameter is written a second time. Of Liger-Kernel we take the variant that does the same work and moves the least:
norms and SwiGLU may overwrite what is not needed any more, and SwiGLU is the one on the fused buffer. Tensors are bf16,
rotary tables and saved scales fp32.
"""

import torch
import torch.nn.functional as F
from liger_kernel.ops import fused_add_rms_norm as liger_add_rms_norm
from liger_kernel.ops import rms_norm as liger_rms_norm
from liger_kernel.ops import rope as liger_rope
from liger_kernel.ops import swiglu as liger_swiglu
from torch import Tensor

from benchmarks.kernels.adapters import ADAPTERS
from benchmarks.kernels.float8 import CASTS
from benchmarks.kernels.head import softmax_gradient, softmax_loss
from benchmarks.kernels.shapes import Shape
from benchmarks.kernels.work import Work, both, normal, size
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
LIGER_CASTING, LIGER_CASTING_CODE = "llama", 0


def rms_norm(s: Shape, T: int, device: str) -> Work:
    """RMSNorm."""
    x, w = normal(T, s.D, device=device), normal(s.D, device=device)
    return Work(
        logtrain=lambda: rms_norm_op(x, w, EPS),
        liger=lambda: liger_rms_norm.rms_norm_forward(x, w, EPS, 0.0, LIGER_CASTING, None),
        reference=lambda: rms_norm_reference(x, w, EPS),
        eager=lambda: F.rms_norm(x, (s.D,), w, EPS),
        bytes_minimum=both(size(x, w) + size(x)),
    )


def rms_norm_backward(s: Shape, T: int, device: str) -> Work:
    """The backward of RMSNorm."""
    dy, x, w = normal(T, s.D, device=device), normal(T, s.D, device=device), normal(s.D, device=device)
    scale, (block, warps) = torch.ones(T, device=device), liger_rms_norm.calculate_settings(s.D)
    return Work(
        logtrain=lambda: rms_norm_backward_op(dy, None, x, w, scale, True),
        liger=lambda: liger_rms_norm.rms_norm_backward(
            dy, x, w, scale, 0.0, LIGER_CASTING_CODE, block, warps, True, None
        ),
        reference=lambda: rms_norm_reference(x, w, EPS),
        eager=lambda: F.rms_norm(x, (s.D,), w, EPS),
        leaves=(x, w),
        gradients=(dy,),
        overwritten=(dy,),
        bytes_minimum=both(size(dy, x, w) + size(x, w)),
    )


def added_and_normalised(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` as one would write it in PyTorch."""
    total = x + r
    return total, F.rms_norm(total, w.shape, w, EPS)


def add_rms_norm(s: Shape, T: int, device: str) -> Work:
    """The residual addition with the RMSNorm after it."""
    x, r, w = normal(T, s.D, device=device), normal(T, s.D, device=device), normal(s.D, device=device)
    return Work(
        logtrain=lambda: add_rms_norm_op(x, r, w, EPS),
        liger=lambda: liger_add_rms_norm.fused_add_rms_norm_forward(x, r, w, EPS, 0.0, LIGER_CASTING),
        reference=lambda: add_rms_norm_reference(x, r, w, EPS),
        eager=lambda: added_and_normalised(x, r, w),
        bytes_minimum=both(size(x, r, w) + size(x, r)),
    )


def add_rms_norm_backward(s: Shape, T: int, device: str) -> Work:
    """The backward of `add_rms_norm`."""
    dy, dr, x, r, w = *(normal(T, s.D, device=device) for _ in range(4)), normal(s.D, device=device)
    scale, (block, warps) = torch.ones(T, device=device), liger_rms_norm.calculate_settings(s.D)
    return Work(
        logtrain=lambda: rms_norm_backward_op(dy, dr, r, w, scale, True),
        liger=lambda: liger_add_rms_norm.fused_add_rms_norm_backward(
            dy, dr, r, w, scale, 0.0, LIGER_CASTING_CODE, block, warps, 2, True
        ),
        reference=lambda: add_rms_norm_reference(x, r, w, EPS),
        eager=lambda: added_and_normalised(x, r, w),
        leaves=(x, r, w),
        gradients=(dr, dy),
        overwritten=(dy, dr),
        bytes_minimum=both(size(dy, dr, r, w) + size(r, w)),
    )


def rope(s: Shape, T: int, device: str) -> Work:
    """Rotary embedding of queries and keys."""
    qkv = normal(T, s.N + 2 * s.K, s.H, device=device)
    q, k = (normal(1, T, heads, s.H, device=device).transpose(1, 2) for heads in (s.N, s.K))
    cos, sin = (normal(T, s.H // 2, device=device, dtype=torch.float32) for _ in range(2))
    return Work(
        logtrain=lambda: rope_op(qkv, cos, sin, s.N, s.K),
        liger=lambda: liger_rope.rope_forward(q, k, cos, sin, rotary_dim=s.H),
        reference=lambda: rope_reference(qkv, cos, sin, s.N, s.K),
        eager=lambda: rope_reference(qkv, cos, sin, s.N, s.K),
        overwritten=(q, k),
        bytes_minimum=both(size(q, k, cos, sin) + size(q, k)),
        note="liger: on q and k of separate projections; parts of a fused one it copies first, which is not counted",
    )


def rope_backward(s: Shape, T: int, device: str) -> Work:
    """The backward of rotary embedding, for the fused projection."""
    dq, dk, dv = (normal(T, heads, s.H, device=device) for heads in (s.N, s.K, s.K))
    cos, sin = (normal(T, s.H // 2, device=device, dtype=torch.float32) for _ in range(2))
    dq_, dk_ = dq[None].transpose(1, 2), dk[None].transpose(1, 2)
    qkv = normal(T, s.N + 2 * s.K, s.H, device=device)
    joined = size(dq, dk, dv)
    return Work(
        logtrain=lambda: rope_backward_op(dq, dk, dv, cos, sin),
        liger=lambda: (liger_rope.rope_backward(dq_, dk_, cos, sin, rotary_dim=s.H), torch.cat((dq, dk, dv), dim=1))[1],
        reference=lambda: rope_reference(qkv, cos, sin, s.N, s.K),
        eager=lambda: rope_reference(qkv, cos, sin, s.N, s.K),
        leaves=(qkv,),
        gradients=(dq, dk, dv),
        overwritten=(dq, dk),
        bytes_minimum=both(size(cos, sin) + 2 * joined),
        note="with dv joined for the fused projection; liger turns dq and dk in place, and torch.cat joins the three",
    )


def gated(gate_up: Tensor) -> Tensor:
    """`swiglu` as one would write it in PyTorch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu(s: Shape, T: int, device: str) -> Work:
    """The gated activation."""
    gate_up = normal(T, 2 * s.F, device=device)
    return Work(
        logtrain=lambda: swiglu_op(gate_up),
        liger=lambda: liger_swiglu.swiglu_fused_gate_up_forward(gate_up),
        reference=lambda: swiglu_reference(gate_up),
        eager=lambda: gated(gate_up),
        bytes_minimum=both(size(gate_up) + size(gate_up) // 2),
    )


def swiglu_backward(s: Shape, T: int, device: str) -> Work:
    """The backward of the gated activation."""
    gate_up, dy = normal(T, 2 * s.F, device=device), normal(T, s.F, device=device)
    return Work(
        logtrain=lambda: swiglu_backward_op(dy, gate_up),
        liger=lambda: liger_swiglu.swiglu_fused_gate_up_backward(gate_up, dy, in_place=True),
        reference=lambda: swiglu_reference(gate_up),
        eager=lambda: gated(gate_up),
        leaves=(gate_up,),
        gradients=(dy,),
        overwritten=(gate_up, dy),
        bytes_minimum=both(size(dy, gate_up) + size(gate_up)),
    )


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
    *ADAPTERS,
    *CASTS,
)
