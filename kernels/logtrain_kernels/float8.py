"""Casts to float8 with a scale, and the matrix product of two float8 matrices.

    x = q / m        q = round(x m), to nearest, ties to even, in float8        amax = the largest |x|

max is 448 = 1.75 * 2^8 in e4m3 (4 bits of exponent, 3 of mantissa, no infinity) and 57,344 = 1.75 * 2^15 in e5m2
(Micikevicius et al. 2022, arXiv:2209.05433). Tensorwise m = max / amax: then the outliers that make most of a matrix's
norm are near max, where the relative error of a rounding is the least. Rowwise m is the largest power of two with
amax m <= max, so that x m and 1 / m are exact, and a scale may go into another matrix without rounding it.

Where amax is infinite or NaN, 1 / m is NaN, and with it all that is multiplied: a step that has diverged is seen in its
gradients, as it is in bf16. For amax < 2^-117, m stays 2^126, whose inverse no GPU flushes to zero.

Shapes in names: T rows, D elements of a row; M, N, K of a matrix product.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from logtrain_kernels.device import on_gpu

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
TOP_EXPONENT = {E4M3: 8, E5M2: 15}  # of the largest number, which has the mantissa 1.75 in both
MOST_EXPONENT = 126  # of a scale
MANTISSA_BITS, BIAS = 23, 127  # of fp32
MANTISSA_OF_1_75 = 0x600000

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


def float8_scale(amax: Tensor, scaling: Scaling, dtype: torch.dtype = E4M3) -> tuple[Tensor, Tensor]:
    """(scale m, 1 / m), fp32, of what has the largest absolute value `amax`, fp32 of any shape. 1 / m is NaN, and m is
    1, where amax is not finite.
    """
    amax = amax.float()
    if scaling == "tensorwise":
        largest = torch.finfo(dtype).max
        finite, amax = amax.isfinite(), amax.clamp(min=largest * 2.0**-MOST_EXPONENT)
        return (largest / amax).where(finite, 1.0), (amax / largest).where(finite, torch.nan)
    bits = amax.view(torch.int32)
    exponent = (bits >> MANTISSA_BITS) - BIAS
    above = (bits & ((1 << MANTISSA_BITS) - 1)) > MANTISSA_OF_1_75
    k = (TOP_EXPONENT[dtype] - above.int() - exponent).clamp_(max=MOST_EXPONENT)
    finite = exponent <= BIAS
    m = ((k + BIAS) << MANTISSA_BITS).view(torch.float32).where(finite, 1.0)
    inverse = ((BIAS - k) << MANTISSA_BITS).view(torch.float32).where(finite, torch.nan)
    return m, inverse


def float8_amax(x_TD: Tensor, scaling: Scaling) -> Tensor:
    """The largest absolute value of a matrix, fp32 [], or of each of its rows, fp32 [T, 1]; 0 of nothing."""
    if not x_TD.numel():
        return x_TD.new_zeros((), dtype=torch.float32).expand((len(x_TD), 1) if scaling == "rowwise" else ())
    found = x_TD.abs().amax(-1, keepdim=True) if scaling == "rowwise" else x_TD.abs().amax()
    return found.float()


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
