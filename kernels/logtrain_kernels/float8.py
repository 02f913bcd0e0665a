"""Casts to float8 with a scale, and the matrix product of two float8 matrices.

    x = q / m        q = round(x m), to nearest, ties to even, in float8        amax = the largest |x|

max is 448 = 1.75 * 2^8 in e4m3 (4 bits of exponent, 3 of mantissa, no infinity) and 57,344 = 1.75 * 2^15 in e5m2
(Micikevicius et al. 2022, arXiv:2209.05433). m = max / amax, of a matrix or of each row: then the outliers, which make
most of the norm, are near max, where the relative error of a rounding is the least. With scales rounded to powers of
two casts add half as much variance again to gradients (SmolLM2-135M, tensorwise: 12.8 instead of 8.7% of a step's own).

Where amax is infinite or NaN, 1 / m is NaN, and with it all that is multiplied: a step that has diverged is seen in its
gradients, as it is in bf16. For amax < 2^-117, m stays 2^126, whose inverse no GPU flushes to zero.

Shapes in names: T rows, D elements of a row; M, N, K of a matrix product.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from logtrain_kernels.device import on_gpu

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MOST_EXPONENT = 126  # of a scale

Scaling = Literal["tensorwise", "rowwise"]


class Float8(NamedTuple):
    """A matrix in float8 that stands for `values` * `inverse`."""

    values: Tensor
    """float8 [T, D]."""
    inverse: Tensor
    """1 / m of the scale m, fp32: [] of the whole tensor, or [T, 1] of each row."""

    def dequantised(self) -> Tensor:
        """The numbers that it stands for, fp32 [T, D]."""
        return self.values.float() * self.inverse


def float8_scale(amax: Tensor, dtype: torch.dtype = E4M3) -> tuple[Tensor, Tensor]:
    """(scale m, 1 / m), fp32, of what has the largest absolute value `amax`, fp32 of any shape. 1 / m is NaN, and m is
    1, where amax is not finite.
    """
    largest, amax = torch.finfo(dtype).max, amax.float()
    finite, amax = amax.isfinite(), amax.clamp(min=largest * 2.0**-MOST_EXPONENT)
    m = torch.full_like(amax, largest) / amax  # of a number and a tensor, PyTorch would round the reciprocal first
    return m.where(finite, 1.0), (amax / largest).where(finite, torch.nan)


def float8_amax(x_TD: Tensor, scaling: Scaling) -> Tensor:
    """The largest absolute value of a matrix, fp32 [], or of each of its rows, fp32 [T, 1]; 0 of nothing."""
    if not x_TD.numel():
        return x_TD.new_zeros((), dtype=torch.float32).expand((len(x_TD), 1) if scaling == "rowwise" else ())
    by_rows = {"dim": -1, "keepdim": True} if scaling == "rowwise" else {}
    return torch.linalg.vector_norm(x_TD, torch.inf, **by_rows).float()


def float8_round(x_TD: Tensor, m: Tensor, dtype: torch.dtype = E4M3) -> Tensor:
    """x m rounded to float8: x fp32 or bf16, m fp32, broadcast. Beyond the largest number it saturates; NaN stays."""
    largest = torch.finfo(dtype).max
    return (x_TD.float() * m).clamp_(-largest, largest).to(dtype)


def float8_product(a: Float8, b: Float8, dtype: torch.dtype, *, fast: bool) -> Tensor:
    """a b^T [M, N] in `dtype`, bf16 or fp32, with both operands as they lie: a [M, K], b [N, K], each scaled as a whole
    or by rows. Sums are fp32.

    On GPUs (sm_89 and later) M, N and K are multiples of 16. `fast`: let Hopper's tensor cores sum some bits less, as
    they do at full speed. A CPU multiplies the numbers that the operands stand for, in fp32.
    """
    if not on_gpu(a.values):
        return (a.dequantised() @ b.dequantised().T).to(dtype)
    inverse_a, inverse_b = a.inverse, b.inverse
    if inverse_a.ndim or inverse_b.ndim:  # cuBLAS takes two numbers or two vectors
        inverse_a = inverse_a.expand(len(a.values), 1).contiguous()
        inverse_b = inverse_b.expand(len(b.values), 1).contiguous().T
    multiply = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
    return multiply(a.values, b.values.T, inverse_a, inverse_b, out_dtype=dtype, use_fast_accum=fast)
