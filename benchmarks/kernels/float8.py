"""The casts to float8 of a block's operands: of the widest one, dy of gate and up, by rows and as a whole, both ways;
and of those that are computed on the way, a norm, SwiGLU and its gradient.

Liger-Kernel has none. With a scale for all of a matrix there are two looks at it, as the scale comes before its first
element; the first leaves one number.
"""

import torch
from torch import Tensor

from benchmarks.kernels.shapes import Shape
from benchmarks.kernels.work import Call, Forward, Work, normal, size
from logtrain_kernels.float8 import E4M3
from logtrain_kernels.float8_norm import rms_norm_largest_op, rms_norm_pair_op, rms_norm_pair_reference
from logtrain_kernels.float8_pair import (
    float8_largest_op,
    float8_pair_op,
    float8_transposed_op,
    largest_reference,
    pair_reference,
)
from logtrain_kernels.float8_rope import joined, rope_backward_largest_op, rope_backward_pair_op
from logtrain_kernels.float8_rows import float8_rows_op, rows_reference
from logtrain_kernels.float8_swiglu import (
    gradient_reference,
    swiglu_backward_largest_op,
    swiglu_backward_pair_op,
    swiglu_largest_op,
    swiglu_pair_op,
)
from logtrain_kernels.rms_norm import add_rms_norm_reference
from logtrain_kernels.swiglu import swiglu_reference

EPS = 1e-5


def cast(logtrain: Call, reference: Forward, minimum: int) -> Work:
    """An operation that nobody else has: what a CPU does is what one would write."""
    return Work(logtrain=logtrain, reference=reference, eager=reference, bytes_minimum={"logtrain": minimum})


def float8_rows(s: Shape, T: int, device: str) -> Work:
    """The cast of [T, 2F] with a scale for each row."""
    x = normal(T, 2 * s.F, device=device)
    return cast(lambda: float8_rows_op(x, None), lambda: rows_reference(x, None), size(x) + x.numel() + 4 * T)


def float8_largest(s: Shape, T: int, device: str) -> Work:
    """The first look at [T, 2F]."""
    x = normal(T, 2 * s.F, device=device)
    return cast(lambda: float8_largest_op(x), lambda: largest_reference(x), size(x) + 4)


def float8_pair(s: Shape, T: int, device: str) -> Work:
    """The second look at [T, 2F]."""
    x = normal(T, 2 * s.F, device=device)
    largest = largest_reference(x)
    call = (x, largest, True, True)
    return cast(lambda: float8_pair_op(*call), lambda: pair_reference(*call), size(x, largest) + 2 * x.numel() + 4)


def float8_transposed(s: Shape, T: int, device: str) -> Work:
    """The transposition of [T, 2F] in float8."""
    x = normal(T, 2 * s.F, device=device).to(E4M3)
    return cast(lambda: float8_transposed_op(x), lambda: x.T.contiguous(), 2 * size(x))


def rms_norm_largest(s: Shape, T: int, device: str) -> Work:
    """The residual addition, and the first look at the norm after it."""
    x, r, w = normal(T, s.D, device=device), normal(T, s.D, device=device), normal(s.D, device=device)

    def reference():
        total, y = add_rms_norm_reference(x, r, w, EPS)
        return total, (total.float().square().mean(-1) + EPS).rsqrt(), largest_reference(y)

    return cast(lambda: rms_norm_largest_op(x, r, w, EPS), reference, size(x, r, w) + size(x) + 4 * T + 4)


def rms_norm_pair(s: Shape, T: int, device: str) -> Work:
    """The second look at the norm."""
    x, w = normal(T, s.D, device=device), normal(s.D, device=device)
    scale = (x.float().square().mean(-1) + EPS).rsqrt()
    call = (x, scale, w, largest_reference(x.float() * scale[:, None] * w), True, True)
    minimum = size(x, scale, w) + 2 * x.numel() + 8
    return cast(lambda: rms_norm_pair_op(*call), lambda: rms_norm_pair_reference(*call), minimum)


def swiglu_largest(s: Shape, T: int, device: str) -> Work:
    """The first look at the gated activation."""
    x = normal(T, 2 * s.F, device=device)
    return cast(lambda: swiglu_largest_op(x), lambda: largest_reference(swiglu_reference(x)), size(x) + 4)


def swiglu_pair(s: Shape, T: int, device: str) -> Work:
    """The second look at the gated activation."""
    x = normal(T, 2 * s.F, device=device)
    ways = largest_reference(swiglu_reference(x)), True, True
    return cast(
        lambda: swiglu_pair_op(x, *ways), lambda: pair_reference(swiglu_reference(x), *ways), size(x) + x.numel() + 8
    )


def swiglu_backward_largest(s: Shape, T: int, device: str) -> Work:
    """The first look at the gradient of what SwiGLU takes."""
    dy, x = normal(T, s.F, device=device), normal(T, 2 * s.F, device=device)
    return cast(
        lambda: swiglu_backward_largest_op(dy, x), lambda: largest_reference(gradient_reference(dy, x)), size(dy, x) + 4
    )


def swiglu_backward_pair(s: Shape, T: int, device: str) -> Work:
    """The second look at the gradient of what SwiGLU takes."""
    dy, x = normal(T, s.F, device=device), normal(T, 2 * s.F, device=device)
    ways = largest_reference(gradient_reference(dy, x)), True, True
    return cast(
        lambda: swiglu_backward_pair_op(dy, x, *ways),
        lambda: pair_reference(gradient_reference(dy, x), *ways),
        size(dy, x) + 2 * x.numel() + 8,
    )


def rotated(s: Shape, T: int, device: str) -> tuple[Tensor, ...]:
    """Gradients of q, k and v, and the tables by which q and k were turned."""
    parts = (normal(T, heads, s.H, device=device) for heads in (s.N, s.K, s.K))
    return *parts, *(normal(T, s.H // 2, device=device, dtype=torch.float32) for _ in range(2))


def rope_backward_largest(s: Shape, T: int, device: str) -> Work:
    """The first look at the gradient of what rotary embedding takes."""
    parts = rotated(s, T, device)
    return cast(lambda: rope_backward_largest_op(*parts), lambda: largest_reference(joined(*parts)), size(*parts) + 4)


def rope_backward_pair(s: Shape, T: int, device: str) -> Work:
    """The second look at the gradient of what rotary embedding takes."""
    parts = rotated(s, T, device)
    ways = largest_reference(joined(*parts)), True, True
    return cast(
        lambda: rope_backward_pair_op(*parts, *ways),
        lambda: pair_reference(joined(*parts), *ways),
        size(*parts) + 2 * sum(part.numel() for part in parts[:3]) + 8,
    )


CASTS = (
    *(float8_largest, float8_rows, float8_pair, float8_transposed, rms_norm_largest, rms_norm_pair),
    *(rope_backward_largest, rope_backward_pair),
    *(swiglu_largest, swiglu_pair, swiglu_backward_largest, swiglu_backward_pair),
)
