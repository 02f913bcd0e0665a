"""The float8 linear layer: its products are those of the cast operands, and no less exact than torchao's."""

import math
from typing import Any

import pytest
import torch

from logtrain_kernels import Float8Recipe, float8_cast, float8_linear, pretended_gpu
from logtrain_kernels.float8 import float8_product
from tests.support.precision import values_and_gradients

RECIPES = pytest.mark.parametrize(
    "recipe",
    [Float8Recipe(scaling, for_weight) for scaling in ("tensorwise", "rowwise") for for_weight in (True, False)],
    ids=lambda recipe: f"{recipe.scaling}, dW in {'fp8' if recipe.weight_gradient else 'bf16'}",
)
T, D, O = 96, 64, 160  # noqa: E741


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and weights with outliers: some features and outputs are 30 times as large as others."""
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(T, D, generator=generator), torch.randn(O, D, generator=generator) / D**0.5
    x[:, 5], w[7] = 30 * x[:, 5], 30 * w[7]
    return x, w


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return ((found.double() - truth.double()).norm() / truth.double().norm()).item()


def by_hand(x, w, dy, recipe):
    """y, dx and dW of the operands as the recipe casts them, in fp64."""
    scaling = recipe.scaling
    qx, qw = (float8_cast(z, scaling).dequantised().double() for z in (x, w))
    if scaling == "tensorwise":
        qdy = float8_cast(dy, scaling).dequantised().double()
        dx, dw = qdy @ qw, qdy.T @ qx
    else:
        mw, mx = float8_cast(w, scaling).inverse, float8_cast(x, scaling).inverse
        dx = float8_cast(dy * mw.T, scaling).dequantised().double() @ (qw / mw)
        dw = float8_cast((dy * mx).T.contiguous(), scaling).dequantised().double() @ (qx / mx)
    return qx @ qw.T, dx, dw if recipe.weight_gradient else dy.double().T @ x.double()


@RECIPES
def test_the_products_are_those_of_the_cast_operands(recipe):
    x, w = inputs()
    dy = torch.randn(T, O, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    found = values_and_gradients(lambda a, b: float8_linear(a, b, recipe), [x, w], torch.float32)
    for mine, truth in zip(found, by_hand(x, w, dy, recipe), strict=True):
        assert relative(mine, truth) < 1e-6


@RECIPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("seed", range(5))
def test_its_error_is_at_most_one_and_a_half_times_torchaos(recipe, dtype, seed):
    torchao = pytest.importorskip("torchao.float8", reason="what the layer is compared with")
    name = recipe.scaling if recipe.weight_gradient else "rowwise_with_gw_hp"
    x, w = (z.to(dtype) for z in inputs(seed))
    theirs: Any = torch.nn.Sequential(torch.nn.Linear(D, O, bias=False, dtype=dtype))
    theirs[0].weight.data.copy_(w)
    config = torchao.Float8LinearConfig.from_recipe_name(name)
    object.__setattr__(config, "emulate", True)
    torchao.convert_to_float8_training(theirs, config=config)
    leaf = x.clone().requires_grad_()
    y = theirs(leaf)
    generator = torch.Generator().manual_seed(0)
    y.backward(torch.randn(y.shape, generator=generator).bfloat16().to(y.dtype))
    of_torchao: Any = y.detach(), leaf.grad, theirs[0].weight.grad
    ours = values_and_gradients(lambda a, b: float8_linear(a, b, recipe), [x, w], dtype)
    exact = values_and_gradients(torch.nn.functional.linear, [x, w], torch.float64)
    for mine, other, truth in zip(ours, of_torchao, exact, strict=True):
        assert relative(mine, truth) <= 1.5 * relative(other, truth)


@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_pytorchs_own_product_which_gpus_run_gives_the_same(scaling, dtype):
    x, w = inputs()
    a, b = float8_cast(x, scaling), float8_cast(w, scaling)
    with pretended_gpu():
        on_gpu = float8_product(a, b, dtype, fast=False)
        mixed = float8_product(a, b._replace(inverse=torch.tensor(2.0)), dtype, fast=True)
    assert on_gpu.dtype == dtype
    rounding = 2e-5 if dtype == torch.float32 else 2**-8
    assert relative(on_gpu, a.dequantised().double() @ b.dequantised().double().T) < rounding
    assert relative(mixed, a.dequantised().double() @ b.values.double().T * 2) < rounding


@RECIPES
@pytest.mark.parametrize("where", ["x", "w", "dy"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_reaches_a_gradient(recipe, where, bad):
    """So that the step is skipped: in the gradient of the weight or of the input, and of x and w also in the output."""
    x, w = (z.requires_grad_() for z in inputs())
    dy = torch.ones(T, O)
    with torch.no_grad():
        {"x": x, "w": w, "dy": dy}[where][3, 2] = bad
    y = float8_linear(x, w, recipe)
    y.backward(dy)
    assert where == "dy" or not y.isfinite().all()
    assert not all(z.grad is not None and z.grad.isfinite().all() for z in (x, w))


@RECIPES
def test_gradients_that_nobody_wants_are_not_computed(recipe):
    x, w = inputs()
    for for_x, for_w in ((True, False), (False, True)):
        a, b = x.clone().requires_grad_(for_x), w.clone().requires_grad_(for_w)
        float8_linear(a, b, recipe).sum().backward()
        assert (a.grad is not None, b.grad is not None) == (for_x, for_w)
