"""The head's cross-entropy against F.cross_entropy on whole logits and against fp64, and what it holds meanwhile."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from precision import DTYPES, assert_right, values_and_gradients
from torch.utils._python_dispatch import TorchDispatchMode

from logtrain_kernels import IGNORE, linear_cross_entropy, linear_cross_entropy_reference

# The module; the package gives the function of the same name.
LCE = sys.modules["logtrain_kernels.linear_cross_entropy"]
TOKENS, WIDTH, VOCAB = 50, 24, 131


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1309)


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
    """chunk(tokens): so many tokens' logits at once, of that dtype."""

    def set_chunk(tokens, dtype=torch.float32):
        monkeypatch.setattr(LCE, "CHUNK_BYTES", tokens * VOCAB * dtype.itemsize)

    return set_chunk


@DTYPES
@pytest.mark.parametrize("chunk_tokens", [1, 7, 25, 49, 50, 1000])
def test_loss_is_cross_entropy_of_whole_logits_at_any_chunk_size(chunk_tokens, dtype, chunk):
    chunk(chunk_tokens, dtype)
    *inputs, labels = loss_inputs()
    ours, pytorch, exact = (
        loss_by(function, labels) for function in (linear_cross_entropy, whole_logits, from_the_definition)
    )
    assert_right(ours, pytorch, exact, inputs, dtype)


@DTYPES
def test_the_reference_of_the_loss(dtype):
    *inputs, labels = loss_inputs()
    functions = (linear_cross_entropy_reference, whole_logits, from_the_definition)
    assert_right(*(loss_by(function, labels) for function in functions), inputs, dtype)


def test_the_heads_gradient_is_summed_over_chunks_in_fp32(chunk):
    chunk(1, torch.bfloat16)
    inputs, labels = [torch.randn(400, WIDTH), torch.randn(VOCAB, WIDTH)], torch.randint(3, (400,))
    functions = (linear_cross_entropy, whole_logits, from_the_definition)
    assert_right(*(loss_by(function, labels) for function in functions), inputs, torch.bfloat16)


def test_a_chunk_smaller_than_one_row_of_logits_is_one_token(monkeypatch):
    monkeypatch.setattr(LCE, "CHUNK_BYTES", VOCAB // 2)
    x, weight, labels = loss_inputs()
    torch.testing.assert_close(linear_cross_entropy(x, weight, labels), whole_logits(x, weight, labels))


def test_loss_of_large_logits_is_finite_and_right(chunk):
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
def test_without_targets_loss_and_gradients_are_exactly_zero(function, num_tokens, chunk):
    chunk(7)
    x, weight, _ = loss_inputs()
    x = x[:num_tokens].requires_grad_()
    loss = function(x, weight.requires_grad_(), torch.full((num_tokens,), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert torch.count_nonzero(x.grad) == 0
    assert torch.count_nonzero(weight.grad) == 0


def test_an_ignored_token_moves_nothing(chunk):
    chunk(7)
    x, weight, labels = loss_inputs()
    ignored = labels == IGNORE
    x.requires_grad_()
    loss = linear_cross_entropy(x, weight, labels)
    loss.backward()
    assert torch.count_nonzero(x.grad[ignored]) == 0
    assert (x.grad[~ignored].abs().amax(-1) > 0).all()
    moved = x.detach() + ignored[:, None] * 3
    assert linear_cross_entropy(moved, weight, labels).item() == loss.item()


class Allocations(TorchDispatchMode):
    """Shapes of the tensors that operations give, outputs that view or change an input included."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.shapes += [
            tuple(y.shape) for y in (out if isinstance(out, tuple | list) else (out,)) if torch.is_tensor(y)
        ]
        return out


def test_logits_exist_for_one_chunk_at_a_time(chunk):
    chunk(7)
    x, weight, labels = loss_inputs()
    with Allocations() as seen:
        linear_cross_entropy(x.requires_grad_(), weight.requires_grad_(), labels).backward()
    logits = [shape for shape in seen.shapes if VOCAB in shape and WIDTH not in shape]
    assert logits
    assert max(math.prod(shape) for shape in logits) == 7 * VOCAB


@pytest.mark.parametrize("wanted", ["no_grad", "frozen", "both"])
def test_gradients_are_computed_only_where_they_are_wanted(wanted, chunk):
    chunk(7)
    x, weight, labels = loss_inputs()
    trained = wanted != "frozen"
    x.requires_grad_(trained), weight.requires_grad_(trained)
    with torch.set_grad_enabled(wanted != "no_grad"), Allocations() as seen:
        loss = linear_cross_entropy(x, weight, labels)
    buffers = [shape for shape in seen.shapes if shape in ((TOKENS, WIDTH), (VOCAB, WIDTH))]
    assert bool(buffers) == loss.requires_grad == (wanted == "both")
    torch.testing.assert_close(loss, whole_logits(x, weight, labels))


def test_a_second_derivative_is_refused_rather_than_wrong():
    x, weight, labels = loss_inputs()
    loss = linear_cross_entropy(x.requires_grad_(), weight, labels)
    (gradient,) = torch.autograd.grad(loss.square(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
