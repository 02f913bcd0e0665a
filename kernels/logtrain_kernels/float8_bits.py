"""What the kernels that cast to float8 do with bits: the largest of absolute values, its scale, the rounding.

The largest of absolute values is the largest of their bits as integers, of which NaN are the greatest: no maximum of
floating-point numbers, which loses NaN or, where it keeps them, lets Triton spoil stores of float8 beside it (Triton
issue 11111). Triton 3.9's interpreter drops the carry into the exponent when it casts to e4m3 (124.5 gives 64), so
there the kernels round in integers; a GPU has an instruction for it, cvt.rn.satfinite.e4m3x2.f32.
"""

import triton
import triton.language as tl

from logtrain_kernels.device import CAN_INTERPRET

INTERPRETED = tl.constexpr(CAN_INTERPRET)


@triton.jit
def magnitude(x):
    """The bits of |x|, int32: in their order infinity comes behind all numbers, and NaN behind infinity."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def scales(amax):
    """(m, 1 / m) of the bits of the largest |x|, as `float8_scale` says."""
    largest = tl.maximum(amax, 0x04E00000).to(tl.float32, bitcast=True)  # 448 * 2^-126
    m = tl.where(amax < 0x7F800000, tl.div_rn(448.0, largest), 1.0)
    return m, tl.where(amax < 0x7F800000, tl.div_rn(largest, 448.0), float("nan"))


@triton.jit
def e4m3(x):
    """The bits of fp32 numbers rounded to e4m3, uint8."""
    if INTERPRETED:
        bits = magnitude(x)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)  # the exponents' biases are 127 and 7
        least = 16384.0 + bits.to(tl.float32, bitcast=True)  # there fp32's steps are 2^-9, as those of subnormals
        code = tl.where(bits < 0x3C800000, least.to(tl.int32, bitcast=True) - 0x46800000, tl.minimum(normal, 0x7E))
        code = tl.where(bits > 0x7F800000, 0x7F, code)
        return (code | ((x.to(tl.int32, bitcast=True) >> 24) & 0x80)).to(tl.uint8)
    return x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
