"""Casts to float8 against the formats' definition, in integers: nothing here rounds."""

import bisect
import math

import pytest
import torch

from logtrain_kernels import float8_cast
from logtrain_kernels.float8 import E4M3, E5M2, Float8, float8_amax, float8_round, float8_scale
from logtrain_kernels.float8_pair import (
    float8_largest_op,
    float8_pair_op,
    float8_transposed,
    largest_reference,
    pair_reference,
)
from logtrain_kernels.float8_rows import float8_rows_op, rows_reference
from tests.support.precision import triton_kernels

UNIT = 400  # numbers are integers of 2^-400: every product of a bf16 number and a scale is one
FORMATS = pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=["e4m3", "e5m2"])
ALL_BF16 = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def units(bits: int, exponent_bits: int, mantissa_bits: int, unit: int = UNIT) -> int:
    """The number of a sign, an exponent and a mantissa as IEEE 754 reads them, without infinity and NaN."""
    sign, exponent = bits >> (exponent_bits + mantissa_bits), bits >> mantissa_bits & ((1 << exponent_bits) - 1)
    mantissa, bias = bits & ((1 << mantissa_bits) - 1), (1 << (exponent_bits - 1)) - 1
    whole = mantissa + (1 << mantissa_bits) * (exponent > 0)
    return (-1) ** sign * whole << (unit + max(exponent, 1) - bias - mantissa_bits)


# The codes of all finite numbers from 0 on: e4m3 has one NaN, S.1111.111; e5m2 has S.11111.xx for infinity and NaN.
LAYOUT = {E4M3: (4, 3, 0x7E), E5M2: (5, 2, 0x7B)}


def nearest(number: int, grid: list[int]) -> int:
    """The code of the number of the grid next to one that is not negative; of two as near the even one; of those beyond
    the largest that."""
    above = bisect.bisect_left(grid, number)
    if above == len(grid):
        return len(grid) - 1
    if above == 0 or grid[above] == number:
        return above
    low, high = number - grid[above - 1], grid[above] - number
    return above if high < low or (high == low and above % 2 == 0) else above - 1


def rounded_to_fp32(number: int) -> int:
    """To 24 bits, to nearest, ties to even."""
    shift = max(0, number.bit_length() - 24)
    low, rest = number >> shift, number & ((1 << shift) - 1)
    half = (1 << shift) >> 1
    return low + (shift > 0 and (rest > half or (rest == half and low % 2 == 1))) << shift


def by_definition(m: float, dtype: torch.dtype) -> list[int]:
    """What every bf16 number times m, an fp32 number, is in float8, as codes, in the order of the numbers' bits; 127 or
    255 for NaN."""
    *layout, last = LAYOUT[dtype]
    grid = [units(code, *layout, 2 * UNIT) for code in range(last + 1)]
    scale = int(math.ldexp(m, 300)) << (UNIT - 300)
    products = (rounded_to_fp32(units(bits, 8, 7) * scale) for bits in range(0x7F81))
    codes = [nearest(product, grid) for product in products] + [0x7F] * 0x7F
    codes[0x7F80] = last  # infinity saturates
    return codes + [code | 0x80 for code in codes]


def codes_of(q: torch.Tensor) -> list[int]:
    """The bits of float8 numbers, with one NaN for all."""
    return torch.where(q.isnan(), q.view(torch.uint8) | 0x7F, q.view(torch.uint8)).tolist()


@FORMATS
@pytest.mark.parametrize("m", [2.0**-120, 448 / 3.3e38, 2.0**-8, 0.7, 1.0, 1 / 3, 448 / 17.3, 2.0**7, 1e30, 2.0**126])
def test_every_bf16_number_is_rounded_as_the_format_is_defined(m, dtype):
    m = torch.tensor(m)
    assert codes_of(float8_round(ALL_BF16, m, dtype)) == by_definition(m.item(), dtype)


@FORMATS
def test_the_largest_number_becomes_the_formats_largest(dtype):
    amax = torch.tensor([1.0, 3.0, 448.0, 1e-30, 3e38, 0.7])
    m, inverse = float8_scale(amax, dtype)
    largest = torch.finfo(dtype).max
    assert torch.allclose(amax.double() * m, torch.full_like(amax, largest).double(), rtol=2.0**-23)
    assert torch.allclose(m.double() * inverse, torch.ones(6).double(), rtol=2.0**-22)
    assert float8_round(amax, m, dtype).float().eq(largest).all()
    assert float8_scale(torch.tensor([0.0, 2.0**-149]), dtype)[1].tolist() == [2.0**-126] * 2


@FORMATS
@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise"])
def test_a_cast_is_within_half_a_step_of_every_number(scaling, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(33, 70, generator=generator) * torch.logspace(-9, 9, 33)[:, None]
    m, inverse = float8_scale(float8_amax(x, scaling), dtype)
    q = Float8(float8_round(x, m, dtype), inverse)
    assert q.values.dtype == dtype and q.inverse.shape == ((33, 1) if scaling == "rowwise" else ())
    mantissa_bits, least = (3, -9) if dtype == E4M3 else (2, -16)
    step = torch.maximum(x.abs() * 2.0**-mantissa_bits, q.inverse * 2.0**least)
    assert ((q.dequantised() - x).abs() <= step / 2 * (1 + 1e-6)).all()
    rows = q.values.float().abs().amax(1)
    largest = torch.finfo(dtype).max
    assert (rows if scaling == "rowwise" else rows.max()).ge(largest / 2 - largest / 16).all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise"])
def test_what_is_not_finite_is_still_seen(scaling, bad):
    x = torch.ones(4, 8)
    x[1, 3] = bad
    seen = float8_cast(x, scaling).dequantised().isfinite().logical_not()
    assert seen.all() if scaling == "tensorwise" else seen.tolist() == [[row == 1] * 8 for row in range(4)]


@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise"])
def test_zeros_and_the_smallest_numbers(scaling):
    x = torch.zeros(3, 4)
    assert torch.equal(float8_cast(x, scaling).dequantised(), x)
    x[1, 2] = 2.0**-120  # * 2^126 = 64
    assert torch.equal(float8_cast(x, scaling).dequantised(), x)
    x[1, 2] = 2.0**-149  # a subnormal of fp32, below what any scale lifts to float8
    assert torch.equal(float8_cast(x, scaling).dequantised(), torch.zeros(3, 4))
    assert float8_amax(torch.empty(0, 4), scaling).shape == ((0, 1) if scaling == "rowwise" else ())


def same(found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> bool:
    """Whether two casts have the same bits and scales."""
    (q, inverse), (truth, scales) = found, expected
    return codes_of(q) == codes_of(truth) and torch.equal(inverse.nan_to_num(-1), scales.nan_to_num(-1))


def by_reference(x: torch.Tensor, scaling: str) -> tuple[torch.Tensor, torch.Tensor]:
    if scaling == "rowwise":
        return rows_reference(x, None)
    return pair_reference(x, largest_reference(x), True, False).straight


@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_kernels_cast_bit_by_bit_as_the_reference(scaling, dtype):
    """Also where the numbers are large, tiny, at the ends of fp32, zero or not finite: some rows of each."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.tensor([0, 0, 9, -9, 100, -100, 127, -126, -140, -149, 0, 0, 0.0])
    x = torch.randn(13, 70, generator=generator) * torch.exp2(exponents[:, None])
    x[10], x[11, 3], x[12, 69] = 0, math.inf, math.nan
    if dtype == torch.bfloat16:
        x[7:10] = 0  # subnormal: of these in bf16 Triton's interpreter makes other numbers
    for part in (x[:11], x, x[10:11], x[:0]):
        part = part.to(dtype)
        with triton_kernels():
            found = float8_cast(part, scaling)
        assert same(found, by_reference(part, scaling))
    many = torch.randn(200, 100, generator=generator).to(dtype)  # several programs
    with triton_kernels():
        assert same(float8_cast(many, scaling), by_reference(many, scaling))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(128, 64), (144, 80), (129, 65), (7, 200), (300, 3), (0, 5)], ids=str)
def test_both_ways_of_a_matrix_are_one_cast(shape, dtype):
    """Of whole tiles, of sides that are multiples of 16 and of others; and what is not asked for has no memory."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    with triton_kernels():
        largest = float8_largest_op(x)
        pairs = [float8_pair_op(x, largest, *ways) for ways in ((True, True), (True, False), (False, True))]
        turned = float8_transposed(pairs[0][0])
    assert torch.equal(largest, largest_reference(x))
    truth = pair_reference(x, largest, True, True)
    assert torch.equal(truth.transposed.float(), truth.values.float().T)
    for values, transposed, inverse in pairs:
        for found, expected in ((values, truth.values), (transposed, truth.transposed)):
            assert found.shape == expected.shape
            if found.untyped_storage().nbytes() > 1 or x.numel() < 2:
                assert found.is_contiguous() and same((found, inverse), (expected, truth.inverse))
    assert [(v.untyped_storage().nbytes() > 1, t.untyped_storage().nbytes() > 1) for v, t, _ in pairs] == (
        [(True, True), (True, False), (False, True)] if x.numel() else [(False, False)] * 3
    )
    assert codes_of(turned) == codes_of(truth.transposed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_columns_are_multiplied_before_a_row_is_cast(dtype):
    x, factor = torch.randn(5, 90).to(dtype), torch.exp2(torch.arange(-45.0, 45.0))
    with triton_kernels():
        found = float8_rows_op(x, factor)
    assert same(found, rows_reference(x.float() * factor, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rows_longer_than_a_block_are_cast_by_the_largest_of_all_their_elements(dtype):
    x, factor = torch.randn(4, 20_000).to(dtype), torch.rand(20_000)
    x[0, 5], x[1, 19_999], x[2, 16_384], x[3, 16_383] = 30, -30, math.nan, math.inf
    for factor_D in (None, factor):
        with triton_kernels():
            found = float8_rows_op(x, factor_D)
        assert same(found, rows_reference(x, factor_D))


def test_the_interpreters_kernel_rounds_every_bf16_number_as_the_format_is_defined():
    """Within a row that ends with 448, so that the scale is 1: 124.5 is 128 there, and not 64."""
    numbers = ALL_BF16[ALL_BF16.abs() <= 448]
    with triton_kernels():
        found, inverse = float8_rows_op(numbers[None], None)
    assert inverse.item() == 1
    of_all = by_definition(1.0, E4M3)
    assert codes_of(found[0]) == [of_all[bits & 0xFFFF] for bits in numbers.view(torch.int16).tolist()]
