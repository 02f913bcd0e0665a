"""The Triton kernels, interpreted: what is registered with PyTorch, compiled functions, memory beside the tensors,
whole models. That their numbers are right is in test_kernels.py and test_linear_cross_entropy.py.
"""

import functools
import importlib
import math
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from precision import assert_right, values_and_gradients
from synthetic import write_data, write_model
from test_model import build, gradients, packed, random_documents
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint
from training import records, train

import logtrain_kernels as kernels
from logtrain import model
from logtrain.model import Block, LlamaConfig, RandomWeights
from logtrain_kernels import IGNORE, rope_tables
from logtrain_kernels.device import uses_triton

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # PyTorch's compiler's


@pytest.fixture(autouse=True)
def interpreted_kernels():
    torch.manual_seed(1309)
    with kernels.interpreted():
        yield


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """A GPU of one processor: RMSNorm's backward has two programs, and fewer of them than rows."""
    monkeypatch.setattr(importlib.import_module("logtrain_kernels.rms_norm"), "num_processors", lambda device: 1)


# The functions a model calls, with the shapes of their inputs

TABLES = rope_tables(torch.tensor([0, 3, 1, 40, 2]), 8, 100.0, None)
LABELS = torch.tensor([IGNORE, 1, 30, IGNORE, 0])
FUNCTIONS = {
    "rms_norm": (lambda x, w: kernels.rms_norm(x, w, 1e-5), (5, 24), (24,)),
    "add_rms_norm": (lambda x, r, w: kernels.add_rms_norm(x, r, w, 1e-5), (5, 24), (5, 24), (24,)),
    "rope": (lambda qkv: kernels.rope(qkv, *TABLES, 3, 1), (5, 5, 8)),
    "swiglu": (kernels.swiglu, (5, 24)),
    "linear_cross_entropy": (lambda x, w: kernels.linear_cross_entropy(x, w, LABELS), (5, 24), (31, 24)),
}
EACH_FUNCTION = pytest.mark.parametrize("name", FUNCTIONS)


def function_and_inputs(name):
    function, *shapes = FUNCTIONS[name]
    return function, [torch.randn(shape) for shape in shapes]


def assert_equal(ours, others):
    assert len(ours) == len(others) > 0
    for i, (mine, other) in enumerate(zip(ours, others, strict=True)):
        assert torch.equal(mine, other), f"result {i} differs by {(mine - other).abs().max()}"


# The registered operations, with arguments in which no size is a multiple of what a program takes at once


def registered():
    rows, scale = [torch.randn(5, 100) for _ in range(3)], torch.rand(5)
    gate_up, dy = torch.randn(5, 4200), torch.randn(5, 2100)
    qkv, dq, dk, dv = (torch.randn(5, heads, 24) for heads in (15, 9, 3, 3))
    tables = torch.rand(5, 12), torch.rand(5, 12)
    logits, labels = torch.randn(5, 8200), torch.tensor([IGNORE, 0, 8199, 8192, IGNORE])
    return {
        "rms_norm": (rows[0], torch.rand(100), 1e-5),
        "add_rms_norm": (rows[0], rows[1], torch.rand(100), 1e-5),
        "rms_norm_backward": (rows[0], None, rows[2], torch.rand(100), scale),
        "rms_norm_backward, add": (*rows, torch.rand(100), scale),
        "swiglu": (gate_up,),
        "swiglu_backward_": (dy, gate_up),
        "rope_": (qkv, *tables, 9, 3),
        "rope_backward": (dq, dk, dv, *tables),
        "softmax_gradient_": (logits, labels, True),
        "softmax_gradient_, loss only": (logits, labels, False),
    }


def operation(name):
    return getattr(torch.ops.logtrain, name.split(",")[0]).default


EACH_OPERATION = pytest.mark.parametrize("name", registered())


@EACH_OPERATION
def test_an_operation_is_registered_as_pytorch_demands(name):
    arguments = registered()[name]
    if name in ("rms_norm", "add_rms_norm", "swiglu"):
        arguments = [x.requires_grad_() if torch.is_tensor(x) else x for x in arguments]
    results = opcheck(operation(name), arguments)
    assert len(results) == 4
    assert set(results.values()) == {"SUCCESS"}


# Memory beside the tensors


class Fence:
    """Tensors in the midst of NaN: what is read beside them spoils the results, what is written there is found, and so
    is an output that was not written. Within `allocations`, whatever operations allocate is such a tensor too.
    """

    MARGIN = 2**14  # more than a program takes at once

    def __init__(self):
        self.buffers = {}  # by address

    def empty(self, *shape, dtype=torch.float32, device=None):
        shape = shape[0] if shape and isinstance(shape[0], tuple) else shape
        filling = torch.nan if dtype.is_floating_point else IGNORE
        buffer = torch.full((math.prod(shape) + 2 * self.MARGIN,), filling, dtype=dtype)
        self.buffers[buffer.data_ptr()] = buffer
        return buffer[self.MARGIN : -self.MARGIN].view(shape)

    def copy(self, x):
        return self.empty(x.shape, dtype=x.dtype).copy_(x) if torch.is_tensor(x) else x

    @contextmanager
    def allocations(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "empty", self.empty)
            patch.setattr(torch, "empty_like", lambda x, dtype=None: self.empty(x.shape, dtype=dtype or x.dtype))
            patch.setattr(
                torch.Tensor,
                "new_empty",
                lambda x, *shape, dtype=None, device=None: self.empty(*shape, dtype=dtype or x.dtype),
            )
            yield

    def holds(self, x):
        return x.untyped_storage().data_ptr() in self.buffers

    def is_intact(self):
        margins = [part for x in self.buffers.values() for part in (x[: self.MARGIN], x[-self.MARGIN :])]
        return all((part.isnan() if part.is_floating_point() else part == IGNORE).all() for part in margins)


def tensors(values):
    return [x for x in (values if isinstance(values, tuple | list) else [values]) if torch.is_tensor(x)]


@EACH_OPERATION
def test_an_operation_reads_and_writes_nothing_beside_its_tensors_and_all_of_its_outputs(name):
    arguments, fence = registered()[name], Fence()
    fenced = [fence.copy(x) for x in arguments]
    with fence.allocations():
        outputs = tensors(operation(name)(*fenced))
    assert fence.is_intact()
    assert not outputs or fence.holds(outputs[0])
    expected = tensors(operation(name)(*arguments))
    assert_equal(outputs + tensors(fenced), expected + tensors(arguments))


@EACH_FUNCTION
def test_a_function_and_its_gradients_read_no_memory_that_nobody_wrote(name):
    function, inputs = function_and_inputs(name)
    expected, fence = values_and_gradients(function, inputs, torch.float32), Fence()
    with fence.allocations():
        found = values_and_gradients(function, inputs, torch.float32)
    assert fence.buffers
    assert_equal(found, expected)


# Layouts


def transposed(x):
    """The same values, columns first; a vector: every second element of memory."""
    if x.ndim > 1:
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return torch.stack((x, torch.full_like(x, torch.nan)), dim=1)[:, 0]


def results_in_layout(function, inputs, layout):
    leaves = [layout(x).requires_grad_() for x in inputs]
    outputs = tensors(function(*leaves))
    torch.autograd.backward(outputs, [layout(torch.ones_like(y)) if y.ndim else torch.ones_like(y) for y in outputs])
    return [*(y.detach() for y in outputs), *(x.grad for x in leaves)]


STRIDED_WEIGHT = pytest.mark.xfail(strict=True, reason="the kernels read a weight as if it were contiguous")


@pytest.mark.parametrize("name", [pytest.param(n, marks=STRIDED_WEIGHT) if "norm" in n else n for n in FUNCTIONS])
def test_inputs_and_gradients_need_not_be_contiguous(name):
    function, inputs = function_and_inputs(name)
    assert not transposed(inputs[-1]).is_contiguous()
    expected, found = (results_in_layout(function, inputs, layout) for layout in (torch.clone, transposed))
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


# How the kernels meet autograd


@EACH_FUNCTION
def test_gradients_are_those_of_finite_differences(name):
    """In fp64 around the fp32 of the kernels. Recomputed for each backward, since SwiGLU's can run once."""
    function, inputs = function_and_inputs(name)
    anew = functools.partial(checkpoint, lambda *x: in_fp32(function, x), use_reentrant=False)
    inputs = [x.double().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(anew, inputs, eps=1e-2, atol=1e-3, rtol=1e-3, fast_mode=True)


def in_fp32(function, inputs):
    outputs = function(*(x.float() for x in inputs))
    return tuple(y.double() for y in outputs) if isinstance(outputs, tuple) else outputs.double()


def test_a_second_backward_through_swiglu_is_refused_rather_than_wrong():
    y = kernels.swiglu(torch.randn(5, 24, requires_grad=True))
    y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


TWICE = pytest.mark.xfail(strict=True, reason="swiglu hands out the gradient as if it were the input")


@pytest.mark.parametrize("name", [pytest.param(n, marks=TWICE) if n == "swiglu" else n for n in FUNCTIONS])
def test_a_second_derivative_is_refused_rather_than_wrong(name):
    function, inputs = function_and_inputs(name)
    leaves = [x.requires_grad_() for x in inputs]
    loss = sum(y.square().sum() for y in tensors(function(*leaves)))
    with pytest.raises(RuntimeError):
        gradient, *_ = torch.autograd.grad(loss, leaves, create_graph=True)
        gradient.sum().backward()


@EACH_FUNCTION
def test_gradients_of_inputs_are_not_views_of_one_another(name):
    function, inputs = function_and_inputs(name)
    _, *found = [x.untyped_storage().data_ptr() for x in results_in_layout(function, inputs, torch.clone)]
    gradients = found[-len(inputs) :]
    assert len(set(gradients)) == len(gradients)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 123])
def test_rms_norms_backward_with_more_rows_than_programs_and_fewer(num_tokens):
    inputs = [torch.randn(num_tokens, 24), torch.randn(num_tokens, 24), torch.rand(24)]
    assert_right(
        lambda x, r, w: kernels.add_rms_norm(x, r, w, 1e-5),
        lambda x, r, w: (r + x, F.rms_norm(r + x, (24,), w, 1e-5)),
        lambda x, r, w: (r + x, (r + x) / ((r + x).square().mean(-1, keepdim=True) + 1e-5).sqrt() * w),
        inputs,
        torch.float32,
    )


# Logits that are not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_ignored_tokens_logits_count_for_nothing_whatever_they_are(bad):
    logits, labels = torch.randn(4, 8200), torch.tensor([3, IGNORE, IGNORE, 8199])
    spoiled = logits.clone()
    spoiled[1], spoiled[2, 5] = bad, bad
    for with_gradient in (True, False):
        results = []
        for z in (logits.clone(), spoiled.clone()):
            losses = torch.ops.logtrain.softmax_gradient_(z, labels, with_gradient)
            results.append([losses, z if with_gradient else z[labels != IGNORE]])
        assert_equal(*results)
        assert torch.count_nonzero(losses) == 2
    assert torch.count_nonzero(results[0][1]) > 0


ONLY_MASKED = pytest.mark.xfail(strict=True, reason="a first block of -inf alone gives NaN")


@pytest.mark.parametrize("masked", [slice(5), slice(8190, None), pytest.param(slice(8192), marks=ONLY_MASKED)], ids=str)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_logit_of_minus_infinity_has_no_probability(masked):
    logits, label = torch.randn(1, 8200), 8199 if masked.start is None else 0
    logits[:, masked] = -math.inf
    expected = logits.double().requires_grad_()
    loss = F.cross_entropy(expected, torch.tensor([label]))
    loss.backward()
    losses = torch.ops.logtrain.softmax_gradient_(logits, torch.tensor([label]), True)
    torch.testing.assert_close(losses.double(), loss[None], rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.double(), expected.grad, rtol=0, atol=1e-6)


# Compiled


@EACH_FUNCTION
def test_a_compiled_function_is_the_eager_one(name):
    function, inputs = function_and_inputs(name)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert_equal(*(values_and_gradients(f, inputs, torch.float32) for f in (compiled, function)))


TINY = LlamaConfig(
    vocab_size=131,
    hidden_size=24,
    intermediate_size=37,
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    head_dim=8,
    norm_eps=1e-5,
    rope_theta=10_000.0,
    rope_scaling=None,
    max_positions=64,
    tied=False,
)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_block_is_the_eager_one(backend, monkeypatch):
    """With causal attention over the whole row: the reference for CPUs splits it on the host."""

    def over_the_whole_row(q, k, v, *_):
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)

    monkeypatch.setattr(model, "attention", over_the_whole_row)
    block = Block(TINY)
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.3)
    names, weights = zip(*block.named_parameters(), strict=True)
    row = rope_tables(torch.arange(7), 8, 100.0, None), None, None

    def function(x, residual, *weights):
        return torch.func.functional_call(block, dict(zip(names, weights, strict=True)), (x, residual, *row))

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    inputs = [torch.randn(7, 24), torch.randn(7, 24), *weights]
    found, expected = (values_and_gradients(f, inputs, torch.float32) for f in (compiled, function))
    for i, (mine, other) in enumerate(zip(found, expected, strict=True)):
        assert (mine - other).abs().max() <= 1e-6 * other.abs().max(), f"result {i}"


# Whole models


ROW = packed(random_documents([6, 1, 4], TINY.vocab_size))


def losses_of_training(recompute):
    llama = build(TINY, RandomWeights(TINY, seed=1).rows)
    for block in llama.blocks:
        block.recompute = recompute
    optimizer = torch.optim.AdamW(llama.parameters(), lr=5e-2)
    losses = []
    for _ in range(3):
        loss, _ = gradients(llama, *ROW)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def losses_by_references():
    assert not uses_triton(torch.zeros(1)), "made before any test's kernels are interpreted"
    return losses_of_training("none")


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_model_trains_as_with_the_references(recompute, losses_by_references):
    losses = losses_of_training(recompute)
    assert losses == pytest.approx(losses_by_references, rel=1e-5)
    assert losses[-1] < 0.9 * losses[0]


def test_the_program_trains_a_sharded_model_as_with_the_references(tmp_path, ranks):
    shape = {"hidden_size": 24, "intermediate_size": 37, "num_attention_heads": 3, "num_key_value_heads": 1}
    shape |= {"num_hidden_layers": 1}
    folder = write_model(tmp_path / "model", vocab_size=131, **shape)
    data = write_data(tmp_path / "data", folder, seq_len=8, lengths={"train": [3, 5, 8, 12], "valid": [4]})
    flags = ["--model", str(folder), "--data", str(data), "--runs", str(tmp_path), "--recompute", "selective"]
    flags += ["--loader.seq_len", "8", "--loader.rows_per_step", "1", "--optim.lr", "0.01"]
    flags += ["--trainer.epochs", "2", "--trainer.max_steps", "3", "--trainer.log_every", "1"]
    assert ranks.run(1, train, [*flags, "--name", "references"]) == [0]  # another process: not interpreted there
    assert train([*flags, "--name", "triton"]) == 0
    expected, found = (records(tmp_path / name) for name in ("references", "triton"))
    assert len(found) == 3
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in found] == pytest.approx([r[key] for r in expected], rel=1e-5)
    assert found[0]["loss"] != found[2]["loss"]
