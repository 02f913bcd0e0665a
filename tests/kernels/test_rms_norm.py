"""RMSNorm, alone and after the residual addition, against PyTorch's own and against fp64."""

import pytest
import torch
import torch.nn.functional as F

import logtrain_kernels as kernels
from tests.support.precision import DTYPES, assert_right, slack_of


def rms_norm_exact(x, weight, eps=1e-5):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


@DTYPES
@pytest.mark.parametrize("shape", [(0, 96), (1, 64), (5, 4097), (123, 96)], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_rms_norm(shape, scale, dtype, way):
    x, weight = torch.randn(shape) * scale, torch.rand(shape[-1]) + 0.5
    norm = torch.nn.RMSNorm(shape[-1], eps=1e-5)
    assert_right(
        lambda x, w: kernels.rms_norm(x, w, 1e-5),
        lambda x, w: torch.func.functional_call(norm, {"weight": w}, x),
        rms_norm_exact,
        [x, weight],
        dtype,
        slack_of(way, dtype),
    )


@DTYPES
@pytest.mark.parametrize("shape", [(0, 96), (1, 1), (5, 2049), (123, 96)], ids=str)
def test_add_rms_norm_adds_first_and_normalises_the_sum(shape, dtype, way):
    x, residual, weight = torch.randn(shape), torch.randn(shape) * 5, torch.rand(shape[-1]) + 0.5
    assert_right(
        lambda x, r, w: kernels.add_rms_norm(x, r, w, 1e-5),
        lambda x, r, w: (r + x, F.rms_norm(r + x, shape[-1:], w, 1e-5)),
        lambda x, r, w: (r + x, rms_norm_exact(r + x, w)),
        [x, residual, weight],
        dtype,
        slack_of(way, dtype, truncations=2),  # the sum, and what is made of it
    )


@pytest.mark.parametrize("wanted", ["sum", "norm"])
def test_either_result_of_add_rms_norm_may_go_nowhere(wanted, way):
    def wanted_of(total, normed):
        return total if wanted == "sum" else normed

    assert_right(
        lambda x, r, w: wanted_of(*kernels.add_rms_norm(x, r, w, 1e-5)) + 0 * w,
        lambda x, r, w: wanted_of(r + x, F.rms_norm(r + x, (24,), w, 1e-5)) + 0 * w,
        lambda x, r, w: wanted_of(r + x, rms_norm_exact(r + x, w)) + 0 * w,
        [torch.randn(5, 24), torch.randn(5, 24), torch.rand(24)],
        torch.float32,
    )


def test_a_frozen_weight_gets_no_gradient_and_changes_no_one_elses(way):
    x, residual, weight = torch.randn(7, 24, requires_grad=True), torch.randn(7, 24), torch.rand(24)
    gradients = []
    for trained in (True, False):
        weight.grad = None
        loss = sum(y.square().sum() for y in kernels.add_rms_norm(x, residual, weight.requires_grad_(trained), 1e-5))
        gradients.append(torch.autograd.grad(loss, [x])[0])
    assert torch.equal(*gradients)
    assert gradients[0].count_nonzero() > 0


def test_the_residual_stream_starts_with_the_first_input(way):
    x, weight = torch.randn(7, 32), torch.rand(32)
    residual, normed = kernels.add_rms_norm(x, None, weight, 1e-6)
    assert torch.equal(residual, x)
    assert torch.equal(normed, kernels.rms_norm(x, weight, 1e-6))
