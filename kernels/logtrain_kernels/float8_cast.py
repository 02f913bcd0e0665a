"""The cast of a matrix to float8 on a GPU: what float8.py defines, in as few passes as its scales allow.

    rowwise      one kernel: a program reads a row, finds its scale, writes it
    tensorwise   two: the first leaves a largest element for each of its programs, of which the second takes the largest

Each reads what it casts once and writes a byte an element; tensorwise the matrix is read once more before, and so are
rows of more elements than the registers of a program hold. Columns may be multiplied by a vector first (the scales of
the other operand, in the backward of float8_linear.py).

The largest of absolute values is the largest of their bits as integers, of which NaN are the greatest: no maximum of
floating-point numbers, which loses NaN or, where it keeps them, lets Triton spoil stores of float8 beside it (Triton
issue 11111). Triton 3.9's interpreter drops the carry into the exponent when it casts to e4m3 (124.5 gives 64), so
there the kernel rounds in integers; a GPU has an instruction for it, cvt.rn.satfinite.e4m3x2.f32.

Shapes in names: T rows, D elements of a row, P programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logtrain_kernels.cost import Cost, nbytes
from logtrain_kernels.device import CAN_INTERPRET, num_processors, uses_triton
from logtrain_kernels.float8 import E4M3, Float8, Scaling, float8_amax, float8_round, float8_scale
from logtrain_kernels.language import constexpr

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


@triton.jit
def loaded(x_TD, factor_D, at, column, inside, FACTOR: constexpr):
    """Elements of x in fp32, times the factors of their columns."""
    x = tl.load(x_TD + at, mask=inside, other=0.0).to(tl.float32)
    if FACTOR:
        x *= tl.load(factor_D + column, mask=inside, other=0.0)
    return x


@triton.jit
def float8_rows(x_TD, factor_D, values_TD, inverse_T, D: constexpr, FACTOR: constexpr, BLOCK: constexpr):
    """Casts a row: at once, or where it is longer than a block, block by block with a look at all of them before."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    if D <= BLOCK:
        inside, at = column < D, row * D + column
        x = loaded(x_TD, factor_D, at, column, inside, FACTOR)
        m, inverse = scales(tl.max(magnitude(x)))
        tl.store(values_TD + at, e4m3(x * m), mask=inside)
    else:
        largest = tl.zeros((BLOCK,), dtype=tl.int32)
        for first in tl.range(0, D, BLOCK):  # pyright: ignore[reportGeneralTypeIssues]
            inside, at = first + column < D, row * D + first + column
            largest = tl.maximum(largest, magnitude(loaded(x_TD, factor_D, at, first + column, inside, FACTOR)))
        m, inverse = scales(tl.max(largest))
        for first in tl.range(0, D, BLOCK):  # pyright: ignore[reportGeneralTypeIssues]
            inside, at = first + column < D, row * D + first + column
            x = loaded(x_TD, factor_D, at, first + column, inside, FACTOR)
            tl.store(values_TD + at, e4m3(x * m), mask=inside)
    tl.store(inverse_T + row, inverse)


@triton.jit
def float8_largest(x_N, amax_P, N, BLOCK: constexpr, STAGES: constexpr):
    """Gives the bits of the largest element of every P-th block."""
    largest = tl.zeros((BLOCK,), dtype=tl.int32)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    for first in tl.range(start, N, tl.num_programs(0) * BLOCK, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        at = first + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, magnitude(tl.load(x_N + at, mask=at < N, other=0.0).to(tl.float32)))
    tl.store(amax_P + tl.program_id(0), tl.max(largest))


@triton.jit
def float8_whole(x_N, amax_P, values_N, inverse, N, P: constexpr, PROGRAMS: constexpr, BLOCK: constexpr):
    """Casts a block by the scale of the whole."""
    program = tl.arange(0, PROGRAMS)
    m, back = scales(tl.max(tl.load(amax_P + program, mask=program < P, other=0)))
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_N + at, mask=at < N, other=0.0).to(tl.float32)
    tl.store(values_N + at, e4m3(x * m), mask=at < N)
    if tl.program_id(0) == 0:
        tl.store(inverse, back)


MOST_COLUMNS = 16_384  # that a program holds: 16 elements a thread
WHOLE_LAUNCH = {"BLOCK": 4096, "num_warps": 8}  # 16 elements a thread, stored 16 bytes wide


def largest_programs(x_TD: Tensor) -> int:
    """Programs that look for the largest element: four a processor, as many as the second kernel reads at once."""
    return max(1, min(triton.cdiv(x_TD.numel(), WHOLE_LAUNCH["BLOCK"]), 4 * num_processors(x_TD.device)))


def rows_launch(D: int) -> dict[str, int]:
    """Launch parameters of the rowwise cast: up to 16 elements a thread."""
    block = min(triton.next_power_of_2(D), MOST_COLUMNS)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 32)}


# ---- registered operation


@torch.library.custom_op("logtrain::float8_cast", mutates_args=())
def float8_cast_op(x_TD: Tensor, factor_D: Tensor | None, rowwise: bool) -> tuple[Tensor, Tensor]:
    """-> (float8 [T, D], 1 / m fp32: [T, 1] or []); `factor_D`: fp32, for rowwise casts alone"""
    assert rowwise or factor_D is None, "a factor by column is for rows"
    if not uses_triton(x_TD):
        return cast_reference(x_TD, factor_D, "rowwise" if rowwise else "tensorwise")
    x_TD, (T, D) = x_TD.contiguous(), x_TD.shape
    values_TD = x_TD.new_empty(T, D, dtype=torch.uint8)
    inverse = x_TD.new_empty((T, 1) if rowwise else (), dtype=torch.float32)
    if rowwise and T:
        factor = factor_D.contiguous() if factor_D is not None else None
        float8_rows[(T,)](x_TD, factor, values_TD, inverse, D=D, FACTOR=factor is not None, **rows_launch(D))
    elif not rowwise:
        N, P = x_TD.numel(), largest_programs(x_TD)
        amax_P = x_TD.new_empty(P, dtype=torch.int32)
        float8_largest[(P,)](x_TD, amax_P, N, STAGES=3, **WHOLE_LAUNCH)
        programs, grid = triton.next_power_of_2(P), (max(1, triton.cdiv(N, WHOLE_LAUNCH["BLOCK"])),)
        float8_whole[grid](x_TD, amax_P, values_TD, inverse, N, P=P, PROGRAMS=programs, **WHOLE_LAUNCH)
    return values_TD.view(E4M3), inverse


@float8_cast_op.register_fake
def _(x_TD: Tensor, factor_D: Tensor | None, rowwise: bool) -> tuple[Tensor, Tensor]:
    inverse = x_TD.new_empty((len(x_TD), 1) if rowwise else (), dtype=torch.float32)
    return x_TD.new_empty(x_TD.shape, dtype=E4M3), inverse


def cast_reference(x_TD: Tensor, factor_D: Tensor | None, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """`float8_cast_op` in plain PyTorch."""
    x_TD = x_TD if factor_D is None else x_TD.float() * factor_D
    m, inverse = float8_scale(float8_amax(x_TD, scaling))
    return float8_round(x_TD, m), inverse


def float8_cast_cost(x_TD: Tensor, factor_D: Tensor | None, rowwise: bool) -> Cost:
    """The cost of `float8_cast_op`."""
    values = x_TD.numel()
    if rowwise:
        reads = 1 if x_TD.shape[1] <= MOST_COLUMNS else 2
        return Cost(read=reads * nbytes(x_TD, factor_D), written=values + 4 * len(x_TD))
    amax_P = 4 * largest_programs(x_TD)
    return Cost(read=2 * nbytes(x_TD) + amax_P, written=values + amax_P + 4, launches=2, workspace=amax_P)


# ---- what the layers call


def float8_cast(x_TD: Tensor, scaling: Scaling, factor_D: Tensor | None = None) -> Float8:
    """A matrix, fp32 or bf16 [T, D], in e4m3, scaled by its own largest absolute value, or row by row; rowwise with its
    columns multiplied by `factor_D`, fp32, before.
    """
    return Float8(*float8_cast_op(x_TD, factor_D, scaling == "rowwise"))
