"""Norms and SwiGLU that write float8: bit by bit the norm, SwiGLU and the cast one after the other."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from logtrain_kernels import Float8Recipe, Pass, float8_cast, float8_feed_forward, float8_linear, float8_norm_linear
from logtrain_kernels.float8_norm import rms_norm_largest_op, rms_norm_pair_op
from logtrain_kernels.float8_pair import float8_largest_op, float8_pair, float8_pair_op, float8_transposed_op
from logtrain_kernels.float8_swiglu import (
    swiglu_backward_largest_op,
    swiglu_backward_pair_op,
    swiglu_largest_op,
    swiglu_pair_op,
)
from logtrain_kernels.rms_norm import add_rms_norm, add_rms_norm_op, rms_norm, rms_norm_op
from logtrain_kernels.swiglu import swiglu, swiglu_backward_op, swiglu_op
from tests.support.precision import DTYPES, triton_kernels

pytestmark = pytest.mark.slow

EPS = 1e-5
COMPARING_NO_FLOAT8 = ("test_faketensor", "test_autograd_registration")  # which PyTorch cannot
WAYS = pytest.mark.parametrize("ways", [(True, True), (True, False), (False, True)], ids=["both", "straight", "turned"])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def equal(found: tuple[Tensor, ...], truth: tuple[Tensor, ...], ways: tuple[bool, bool]) -> bool:
    """Whether two pairs have the same bits, in the ways that were asked for."""
    (*q, inverse), (*expected, scale) = found, truth
    same = [
        torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b, way in zip(q, expected, ways, strict=True)
        if way
    ]
    return all(same) and torch.equal(inverse, scale)


@DTYPES
@WAYS
@pytest.mark.parametrize("adds", [True, False])
def test_the_norms_kernels_cast_what_the_norm_gives(adds, ways, dtype):
    x, w = 3 * normal(140, 96, dtype=dtype), normal(96, seed=2, dtype=dtype)
    residual = normal(140, 96, seed=1, dtype=dtype) if adds else None
    with triton_kernels():
        total, scale, largest = rms_norm_largest_op(x, residual, w, EPS)
        stream = total if adds else x
        pair = rms_norm_pair_op(stream, scale, w, largest, *ways)
        *sums, y, scales = add_rms_norm_op(x, residual, w, EPS) if adds else rms_norm_op(x, w, EPS)
        assert [*sums] == [] or torch.equal(total, sums[0])
        assert torch.equal(scale, scales) and torch.equal(largest, float8_largest_op(y))
        assert equal(pair, float8_pair(y, *ways), ways)


@DTYPES
@WAYS
@pytest.mark.parametrize(("rows", "width"), [(140, 80), (5, 2064)])
def test_swiglus_kernels_cast_what_swiglu_and_its_backward_give(rows, width, ways, dtype):
    gate_up, dy = 4 * normal(rows, 2 * width, dtype=dtype), normal(rows, width, seed=1, dtype=dtype)
    with triton_kernels():
        y, gradient = swiglu_op(gate_up), gate_up.clone()
        swiglu_backward_op(dy, gradient)
        largest = swiglu_largest_op(gate_up), swiglu_backward_largest_op(dy, gate_up)
        assert [x.item() for x in largest] == [float8_largest_op(z).item() for z in (y, gradient)]
        assert equal(swiglu_pair_op(gate_up, largest[0], *ways), float8_pair(y, *ways), ways)
        assert equal(swiglu_backward_pair_op(dy, gate_up, largest[1], *ways), float8_pair(gradient, *ways), ways)


def test_the_operations_are_registered_as_pytorch_demands():
    x, w, scale, largest = normal(12, 20), normal(20), normal(12).abs(), torch.tensor(0x40000000, dtype=torch.int32)
    for ways in ((True, True), (True, False), (False, True)):
        calls: list[tuple[Any, tuple]] = [
            (float8_largest_op, (x,)),
            (float8_pair_op, (x, largest, *ways)),
            (float8_transposed_op, (x.to(torch.float8_e4m3fn),)),
            (rms_norm_largest_op, (x, x.clone() if ways[0] else None, w, EPS)),
            (rms_norm_pair_op, (x, scale, w, largest, *ways)),
            (swiglu_largest_op, (x,)),
            (swiglu_pair_op, (x, largest, *ways)),
            (swiglu_backward_largest_op, (normal(12, 10), x)),
            (swiglu_backward_pair_op, (normal(12, 10), x, largest, *ways)),
        ]
        for operation, arguments in calls:
            found = opcheck(operation, arguments, test_utils=COMPARING_NO_FLOAT8)
            assert [*found.values()] == ["SUCCESS"] * 2


def layers(x: Tensor, residual: Tensor | None, norm: Tensor, qkv: Tensor, gate_up: Tensor, down: Tensor, fused: bool):
    """A norm with a product, then a feed-forward layer: written so, or of the operations one after the other."""
    if fused:
        r, y = float8_norm_linear(x, residual, norm, EPS, qkv)
        return float8_feed_forward(
            y, r, norm, EPS, (gate_up, float8_cast(gate_up.detach(), "tensorwise")), (down, None)
        )
    r, n = add_rms_norm(x, residual, norm, EPS)
    r, n = add_rms_norm(float8_linear(n, qkv, Float8Recipe()), r, norm, EPS)
    return r, float8_linear(swiglu(float8_linear(n, gate_up, Float8Recipe())), down, Float8Recipe())


@DTYPES
@pytest.mark.parametrize("adds", [True, False])
def test_outputs_and_gradients_are_those_of_the_operations_one_after_the_other(adds, dtype):
    """Bit by bit, of the stream and of all weights."""
    T, D, F = 48, 32, 64
    shapes = [(T, D), (T, D), (D,), (D, D), (2 * F, D), (D, F)]
    results = []
    for fused in (True, False):
        leaves = [normal(*shape, seed=i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)]
        x, residual, *weights = leaves
        outputs = layers(x, residual if adds else None, *weights, fused=fused)
        torch.autograd.backward(outputs, [normal(T, D, seed=i, dtype=dtype) for i in (8, 9)])
        results.append([*(y.detach() for y in outputs), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    assert len(results[0]) == 2 + len(shapes) - (not adds)
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_a_pass_that_saves_nothing_gives_the_output_alone_and_one_that_multiplies_nothing_what_is_saved():
    x, norm, weight = normal(48, 32), normal(32), normal(16, 32).requires_grad_()
    y = float8_norm_linear(x, None, norm, EPS, weight, of=Pass(saves=False))[1]
    whole = float8_norm_linear(x, None, norm, EPS, weight)[1]
    assert torch.equal(y, whole)
    kept, placeholder = [
        float8_norm_linear(x, None, norm, EPS, weight, of=of)[1].grad_fn.saved_tensors[-2]
        for of in (Pass(multiplies=False), Pass(saves=False))
    ]
    assert torch.equal(kept.float(), float8_cast(rms_norm(x, norm, EPS), "tensorwise").values.float().T)
    assert placeholder.shape == (32, 48) and placeholder.untyped_storage().nbytes() == 1
