"""Norms and SwiGLU that write float8: bit by bit the norm, SwiGLU and the cast one after the other."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from logtrain_kernels import ONLY, Float8Recipe, Pass, float8_cast, float8_feed_forward, float8_linear, float8_norm_rope
from logtrain_kernels.float8_norm import rms_norm_largest_op, rms_norm_pair_op
from logtrain_kernels.float8_pair import float8_largest_op, float8_pair, float8_pair_op, float8_transposed_op
from logtrain_kernels.float8_rope import rope_backward_largest_op, rope_backward_pair_op
from logtrain_kernels.float8_swiglu import (
    swiglu_backward_largest_op,
    swiglu_backward_pair_op,
    swiglu_largest_op,
    swiglu_pair_op,
)
from logtrain_kernels.rms_norm import add_rms_norm, add_rms_norm_op, rms_norm, rms_norm_op
from logtrain_kernels.rope import rope, rope_backward_op, rope_tables
from logtrain_kernels.swiglu import swiglu, swiglu_backward_op, swiglu_op
from tests.support.precision import DTYPES, triton_kernels

pytestmark = pytest.mark.slow

EPS = 1e-5
COMPARING_NO_FLOAT8 = ("test_faketensor", "test_autograd_registration")  # which PyTorch cannot
WAYS = ((True, True), (True, False), (False, True))  # both, straight, turned


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
@pytest.mark.parametrize("adds", [True, False])
def test_the_norms_kernels_cast_what_the_norm_gives(adds, dtype):
    x, w = 3 * normal(140, 96, dtype=dtype), normal(96, seed=2, dtype=dtype)
    residual = normal(140, 96, seed=1, dtype=dtype) if adds else None
    with triton_kernels():
        total, scale, largest = rms_norm_largest_op(x, residual, w, EPS)
        *sums, y, scales = add_rms_norm_op(x, residual, w, EPS) if adds else rms_norm_op(x, w, EPS)
        assert [*sums] == [] or torch.equal(total, sums[0])
        assert torch.equal(scale, scales) and torch.equal(largest, float8_largest_op(y))
        stream = total if adds else x
        for ways in WAYS:
            assert equal(rms_norm_pair_op(stream, scale, w, largest, *ways), float8_pair(y, *ways), ways)


@DTYPES
@pytest.mark.parametrize(("rows", "width"), [(140, 80), (5, 2064)])
def test_swiglus_kernels_cast_what_swiglu_and_its_backward_give(rows, width, dtype):
    gate_up, dy = 4 * normal(rows, 2 * width, dtype=dtype), normal(rows, width, seed=1, dtype=dtype)
    with triton_kernels():
        y, gradient = swiglu_op(gate_up), gate_up.clone()
        swiglu_backward_op(dy, gradient)
        largest = swiglu_largest_op(gate_up), swiglu_backward_largest_op(dy, gate_up)
        assert [x.item() for x in largest] == [float8_largest_op(z).item() for z in (y, gradient)]
        for ways in WAYS:
            assert equal(swiglu_pair_op(gate_up, largest[0], *ways), float8_pair(y, *ways), ways)
            pair = swiglu_backward_pair_op(dy, gate_up, largest[1], *ways)
            assert equal(pair, float8_pair(gradient, *ways), ways)


@DTYPES
@pytest.mark.parametrize(("N", "K", "H"), [(18, 6, 16), (2, 1, 24)])
def test_ropes_backward_casts_the_gradient_it_would_write(N, K, H, dtype):
    """Also of more tokens than a tile, of two groups of heads, and of halves that are no power of two."""
    parts = [normal(70, heads, H, seed=i, dtype=dtype) for i, heads in enumerate((N, K, K))]
    tables = rope_tables(torch.arange(70), H, 1e4, None)
    with triton_kernels():
        d = rope_backward_op(*parts, *tables).flatten(1)
        largest = rope_backward_largest_op(*parts, *tables)
        assert largest.item() == float8_largest_op(d).item()
        for ways in WAYS:
            assert equal(rope_backward_pair_op(*parts, *tables, largest, *ways), float8_pair(d, *ways), ways)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_one_element_that_is_not_finite_makes_the_scale_nan(part, bad):
    parts = [normal(5, heads, 16, seed=i) for i, heads in enumerate((4, 2, 2))]
    parts[part][3, 1, 9] = bad
    tables = rope_tables(torch.arange(5), 16, 1e4, None)
    with triton_kernels():
        *_, inverse = rope_backward_pair_op(*parts, *tables, rope_backward_largest_op(*parts, *tables), True, True)
    assert inverse.isnan()


def test_the_operations_are_registered_as_pytorch_demands():
    x, w, scale, largest = normal(12, 20), normal(20), normal(12).abs(), torch.tensor(0x40000000, dtype=torch.int32)
    parts = (*(normal(12, heads, 16, seed=i) for i, heads in enumerate((4, 2, 2))), normal(12, 8), normal(12, 8))
    for ways in WAYS:
        calls: list[tuple[Any, tuple]] = [
            (float8_largest_op, (x,)),
            (float8_pair_op, (x, largest, *ways)),
            (float8_transposed_op, (x.to(torch.float8_e4m3fn),)),
            (rms_norm_largest_op, (x, x.clone() if ways[0] else None, w, EPS)),
            (rms_norm_pair_op, (x, scale, w, largest, *ways)),
            (rope_backward_largest_op, parts),
            (rope_backward_pair_op, (*parts, largest, *ways)),
            (swiglu_largest_op, (x,)),
            (swiglu_pair_op, (x, largest, *ways)),
            (swiglu_backward_largest_op, (normal(12, 10), x)),
            (swiglu_backward_pair_op, (normal(12, 10), x, largest, *ways)),
        ]
        for operation, arguments in calls:
            found = opcheck(operation, arguments, test_utils=COMPARING_NO_FLOAT8)
            assert [*found.values()] == ["SUCCESS"] * 2


N, K, H = 4, 2, 16


def layers(x: Tensor, residual: Tensor | None, norm: Tensor, qkv: Tensor, gate_up: Tensor, down: Tensor, fused: bool):
    """A norm with q, k and v rotated, then a feed-forward layer of q: written so, or of the operations one after the
    other. -> stream, k, v, output
    """
    tables = rope_tables(torch.arange(len(x)), H, 1e4, None)
    if fused:
        r, q, k, v = float8_norm_rope(x, residual, norm, EPS, (qkv, None), tables, (N, K))
        cast = float8_cast(gate_up.detach(), "tensorwise")
        r, y = float8_feed_forward(q.flatten(1), r, norm, EPS, (gate_up, cast), (down, None))
        return r, k, v, y
    r, n = add_rms_norm(x, residual, norm, EPS)
    q, k, v = rope(float8_linear(n, qkv, Float8Recipe()).unflatten(-1, (N + 2 * K, H)), *tables, N, K)
    r, n = add_rms_norm(q.flatten(1), r, norm, EPS)
    return r, k, v, float8_linear(swiglu(float8_linear(n, gate_up, Float8Recipe())), down, Float8Recipe())


@DTYPES
@pytest.mark.parametrize("adds", [True, False])
def test_outputs_and_gradients_are_those_of_the_operations_one_after_the_other(adds, dtype):
    """Bit by bit, of the stream and of all weights."""
    T, D, F = 48, N * H, 96
    shapes = [(T, D), (T, D), (D,), ((N + 2 * K) * H, D), (2 * F, D), (D, F)]
    results = []
    for fused in (True, False):
        leaves = [normal(*shape, seed=i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)]
        x, residual, *weights = leaves
        outputs = layers(x, residual if adds else None, *weights, fused=fused)
        torch.autograd.backward(outputs, [normal(*y.shape, seed=i, dtype=dtype) for i, y in enumerate(outputs, 8)])
        results.append([*(y.detach() for y in outputs), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    assert len(results[0]) == 4 + len(shapes) - (not adds)
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_a_pass_that_saves_nothing_gives_the_output_alone_and_one_that_multiplies_nothing_what_is_saved():
    x, norm, weight = normal(48, 32), normal(32), normal((N + 2 * K) * H, 32).requires_grad_()
    tables = rope_tables(torch.arange(48), H, 1e4, None)

    def q_of(of: Pass) -> Tensor:
        return float8_norm_rope(x, None, norm, EPS, (weight, None), tables, (N, K), of)[1]

    assert torch.equal(q_of(Pass(saves=False)), q_of(ONLY))
    kept, placeholder = (q_of(of).grad_fn.saved_tensors[-2] for of in (Pass(multiplies=False), Pass(saves=False)))
    assert torch.equal(kept.float(), float8_cast(rms_norm(x, norm, EPS), "tensorwise").values.float().T)
    assert placeholder.shape == (32, 48) and placeholder.untyped_storage().nbytes() == 1
