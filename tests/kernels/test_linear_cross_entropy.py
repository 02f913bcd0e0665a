"""The head's cross-entropy against F.cross_entropy on whole logits and against fp64, and what it holds meanwhile."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from logtrain_kernels import IGNORE, linear_cross_entropy, linear_cross_entropy_reference, pretended_gpu, token_losses
from tests.support.precision import DTYPES, NEEDS_2_13, ON_GPU, assert_right, slack_of, values_and_gradients

# The module; the package gives the function of the same name.
LCE = sys.modules["logtrain_kernels.linear_cross_entropy"]
TOKENS, WIDTH, VOCAB = 50, 24, 131


def loss_inputs(scale=1.0):
    """x, head and labels with every fourth label ignored, the first and the last among them."""
    labels = torch.randint(VOCAB, (TOKENS,))
    labels[::4] = IGNORE
    labels[-1] = IGNORE
    labels[1], labels[2] = 0, VOCAB - 1
    return torch.randn(TOKENS, WIDTH) * scale, torch.randn(VOCAB, WIDTH), labels


def loss_by(function, labels):
    """The loss times 0.37: the gradient that arrives is not 1."""
    return lambda x, weight: 0.37 * function(x, weight, labels)


def whole_logits(x, weight, labels):
    return F.cross_entropy((x @ weight.T).float(), labels, ignore_index=IGNORE, reduction="sum")


def from_the_definition(x, weight, labels):
    targets = labels != IGNORE
    log_p = torch.log_softmax(x[targets] @ weight.T, dim=-1)
    return -log_p.gather(1, labels[targets][:, None]).sum()


@pytest.fixture
def chunk(monkeypatch):
    """chunk(tokens) lets so many tokens' logits exist at once, of that dtype."""

    def set_chunk(tokens, dtype=torch.float32):
        monkeypatch.setattr(LCE, "CHUNK_BYTES", tokens * VOCAB * dtype.itemsize)

    return set_chunk


@DTYPES
@pytest.mark.parametrize("chunk_tokens", [1, 7, 25, 49, 50, 1000])
def test_loss_is_cross_entropy_of_whole_logits_at_any_chunk_size(chunk_tokens, dtype, chunk, way):
    chunk(chunk_tokens, dtype)
    *inputs, labels = loss_inputs()
    ours, pytorch, exact = (
        loss_by(function, labels) for function in (linear_cross_entropy, whole_logits, from_the_definition)
    )
    assert_right(ours, pytorch, exact, inputs, dtype, slack_of(way, dtype))


@DTYPES
@pytest.mark.parametrize(
    ("num_tokens", "width", "vocab"),
    [(0, 7, 1003), (1, 7, 1003), (5, 30, 8192), (5, 30, 8193), (3, 5, 128_256), (123, 100, 1003)],
)
def test_loss_at_odd_shapes(num_tokens, width, vocab, dtype, way):
    """8,192 logits are what the kernel reads at once."""
    labels = torch.randint(vocab, (num_tokens,))
    labels[1::3], labels[2::7] = IGNORE, vocab - 1
    inputs = [torch.randn(num_tokens, width), torch.randn(vocab, width)]
    functions = (linear_cross_entropy, whole_logits, from_the_definition)
    assert_right(*(loss_by(function, labels) for function in functions), inputs, dtype, slack_of(way, dtype))


@pytest.mark.parametrize("chunk_tokens", [7, 1000])
def test_losses_token_by_token(chunk_tokens, chunk, way):
    chunk(chunk_tokens)
    x, weight, labels = loss_inputs()
    losses = token_losses(x.requires_grad_(), weight.requires_grad_(), labels)
    assert not losses.requires_grad
    logits = [x.detach().to(dtype) @ weight.detach().to(dtype).T for dtype in (torch.float32, torch.float64)]
    pytorch, exact = (F.cross_entropy(z, labels, ignore_index=IGNORE, reduction="none") for z in logits)
    assert losses.dtype == torch.float32
    assert (losses - exact).abs().max() <= 2 * (pytorch - exact).abs().max()
    assert torch.count_nonzero(losses[labels == IGNORE]) == 0
    assert token_losses(x[:0], weight, labels[:0]).shape == (0,)


@DTYPES
def test_the_reference_of_the_loss(dtype):
    *inputs, labels = loss_inputs()
    functions = (linear_cross_entropy_reference, whole_logits, from_the_definition)
    assert_right(*(loss_by(function, labels) for function in functions), inputs, dtype)


def test_the_heads_gradient_is_summed_over_chunks_in_fp32(chunk, way):
    chunk(1, torch.bfloat16)
    inputs, labels = [torch.randn(400, WIDTH), torch.randn(VOCAB, WIDTH)], torch.randint(3, (400,))
    functions = (linear_cross_entropy, whole_logits, from_the_definition)
    assert_right(
        *(loss_by(function, labels) for function in functions), inputs, torch.bfloat16, slack_of(way, torch.bfloat16)
    )


@pytest.mark.skipif(ON_GPU, reason="there the products themselves are run")
def test_the_products_of_a_gpu_sum_the_heads_gradient_in_fp32(chunk, monkeypatch):
    """The branch for GPUs is run with their products of bf16 that give fp32 made up from a CPU's."""
    products, mm = [], torch.mm

    def product(a, b, *, out_dtype=None, out=None):
        products.append("mm")
        return mm(a, b, out=out) if out_dtype is None else mm(a.to(out_dtype), b.to(out_dtype))

    def add(total, a, b, *, out_dtype, out):
        products.append("addmm")
        assert out is total
        return total.add_(mm(a.to(out_dtype), b.to(out_dtype)))

    monkeypatch.setattr(LCE, "on_gpu", lambda x: True)
    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(torch, "addmm", add)
    chunk(1, torch.bfloat16)
    inputs, labels = [torch.randn(400, WIDTH), torch.randn(VOCAB, WIDTH)], torch.randint(3, (400,))
    functions = (linear_cross_entropy, whole_logits, from_the_definition)
    assert_right(*(loss_by(function, labels) for function in functions), inputs, torch.bfloat16)
    assert products.count("addmm") == 399


@pytest.mark.parametrize("bad", [VOCAB, VOCAB + 5, -1, -99])
def test_a_label_that_is_no_token_makes_the_loss_nan(bad, way):
    x, weight, labels = loss_inputs()
    assert linear_cross_entropy(x, weight, labels).isfinite()
    labels[1] = bad
    assert linear_cross_entropy(x, weight, labels).isnan()


@NEEDS_2_13
def test_flops_on_a_gpu_are_counted():
    T, D, V = 8192, 64, 128_256
    with FakeTensorMode(), pretended_gpu(), FlopCounterMode(display=False) as counter:
        x, weight = (torch.empty(n, D, dtype=torch.bfloat16, requires_grad=True) for n in (T, V))
        linear_cross_entropy(x, weight, torch.zeros(T, dtype=torch.int64)).backward()
    assert counter.get_total_flops() == 6 * T * D * V


def test_a_chunk_smaller_than_one_row_of_logits_is_one_token(monkeypatch, way):
    monkeypatch.setattr(LCE, "CHUNK_BYTES", VOCAB // 2)
    x, weight, labels = loss_inputs()
    torch.testing.assert_close(linear_cross_entropy(x, weight, labels), whole_logits(x, weight, labels))


def test_loss_of_large_logits_is_finite_and_right(chunk, way):
    chunk(7)
    x, weight, labels = loss_inputs(scale=100.0)
    assert (x @ weight.T).abs().max() > 1000  # e^89 overflows fp32
    ours, exact = (
        values_and_gradients(loss_by(function, labels), [x, weight], dtype)
        for function, dtype in ((linear_cross_entropy, torch.float32), (from_the_definition, torch.float64))
    )
    for mine, truth in zip(ours, exact, strict=True):  # logits of 1,000 are rounded to 6e-5
        assert (mine - truth).abs().max() <= 3e-4 * truth.abs().max()


@pytest.mark.parametrize("function", [linear_cross_entropy, linear_cross_entropy_reference])
@pytest.mark.parametrize("num_tokens", [TOKENS, 0])
def test_without_targets_loss_and_gradients_are_exactly_zero(function, num_tokens, chunk, way):
    chunk(7)
    x, weight, _ = loss_inputs()
    x = x[:num_tokens].requires_grad_()
    loss = function(x, weight.requires_grad_(), torch.full((num_tokens,), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert torch.count_nonzero(x.grad) == 0
    assert torch.count_nonzero(weight.grad) == 0


@pytest.mark.parametrize("scale", [3, 3e38], ids=["finite logits", "infinite logits"])
def test_an_ignored_token_moves_nothing(scale, chunk, way):
    chunk(7)
    x, weight, labels = loss_inputs()
    ignored = labels == IGNORE
    other = torch.where(ignored[:, None], x.sign() * scale, x)
    assert (other @ weight.T).isinf().any() == (scale > 3)
    expected, found = (
        values_and_gradients(loss_by(linear_cross_entropy, labels), [y, weight], y.dtype) for y in (x, other)
    )
    assert torch.count_nonzero(expected[1][ignored]) == 0
    assert (expected[1][~ignored].abs().amax(-1) > 0).all()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


class Allocations(TorchDispatchMode):
    """Shapes of the tensors that operations give, outputs that view or change an input included, how many matrix
    products there were, and whether the kernel turned logits into their gradient.
    """

    def __init__(self):
        super().__init__()
        self.shapes, self.products, self.turned = [], 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        if function is torch.ops.logtrain.softmax_gradient_.default:
            self.turned.add(args[2])
        out = function(*args, **(kwargs or {}))
        self.shapes += [
            tuple(y.shape) for y in (out if isinstance(out, tuple | list) else (out,)) if torch.is_tensor(y)
        ]
        return out


def test_logits_exist_for_one_chunk_at_a_time(chunk, way):
    chunk(7)
    x, weight, labels = loss_inputs()
    with Allocations() as seen:
        linear_cross_entropy(x.requires_grad_(), weight.requires_grad_(), labels).backward()
    logits = [shape for shape in seen.shapes if VOCAB in shape and WIDTH not in shape]
    assert logits
    assert max(math.prod(shape) for shape in logits) == 7 * VOCAB


@pytest.mark.parametrize("wanted", ["nothing", "no_grad", "x", "weight", "both"])
def test_gradients_are_computed_only_where_they_are_wanted(wanted, chunk, way):
    chunk(7)
    x, weight, labels = loss_inputs()
    before = x.clone(), weight.clone(), labels.clone()
    for_x, for_weight = wanted in ("x", "both"), wanted in ("weight", "both")
    x.requires_grad_(for_x or wanted == "no_grad"), weight.requires_grad_(for_weight or wanted == "no_grad")
    with torch.set_grad_enabled(wanted != "no_grad"), Allocations() as seen:
        loss = linear_cross_entropy(x, weight, labels)
    assert ((TOKENS, WIDTH) in seen.shapes) == for_x
    assert ((VOCAB, WIDTH) in seen.shapes) == for_weight
    assert seen.products == math.ceil(TOKENS / 7) * (1 + for_x + for_weight)
    assert seen.turned == ({for_x or for_weight} if way == "triton" else set())
    assert loss.requires_grad == (for_x or for_weight)
    torch.testing.assert_close(loss, whole_logits(x, weight, labels))
    assert all(torch.equal(now, then) for now, then in zip((x, weight, labels), before, strict=True))


def test_a_second_derivative_is_refused_rather_than_wrong(way):
    x, weight, labels = loss_inputs()
    loss = linear_cross_entropy(x.requires_grad_(), weight, labels)
    (gradient,) = torch.autograd.grad(loss.square(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
