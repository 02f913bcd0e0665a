"""The Triton kernels, interpreted: what is registered with PyTorch, compiled functions, memory beside the tensors.
That their numbers are right is in the tests of each operation.
"""

import functools
import importlib
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint
from triton.runtime import interpreter

import logtrain_kernels as kernels
from logtrain_kernels import IGNORE, rope_tables
from logtrain_kernels.adapted_linear import spans_of
from tests.support.precision import DTYPES, NEEDS_2_13, ON_GPU, assert_right, values_and_gradients

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # PyTorch's compiler's

if ON_GPU:
    pytest.skip("for the interpreter; on a GPU the tests of each operation run the kernels", allow_module_level=True)


@pytest.fixture(autouse=True)
def interpreted_kernels():
    torch.manual_seed(1309)
    with kernels.interpreted():
        yield


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """A GPU of two processors: the backward of RMSNorm has fewer programs than rows."""
    monkeypatch.setattr(importlib.import_module("logtrain_kernels.rms_norm"), "num_processors", lambda device: 2)


# The functions a model calls, with the shapes of their inputs

MATRIX = torch.randn(31, 24, generator=torch.Generator().manual_seed(1)) / 5
BOUNDS = [3, 13, 0, 10, 0, 3, 13, 29, 10, 26, 3, 6]  # of two adapters
DROPOUT = torch.arange(5) * 2**60 + 1309, torch.tensor(77 - 2**62), 20_000  # seeds, salt, share: 20,000 of 65,536
TABLES = rope_tables(torch.tensor([0, 3, 1, 40, 2]), 8, 100.0, None)
LABELS = torch.tensor([IGNORE, 1, 30, IGNORE, 0])
FUNCTIONS = {
    "adapted_linear": (
        lambda x, a, b: kernels.adapted_linear(x, MATRIX, a, b, spans_of(BOUNDS), 0.1, *DROPOUT),
        *((5, 24), (6, 24), (26, 3)),
    ),
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


def registered(dtype=torch.float32):
    rows, weight = [torch.randn(5, 100).to(dtype) for _ in range(3)], torch.rand(100).to(dtype)
    scale, tables = torch.rand(5), (torch.rand(5, 12), torch.rand(5, 12))
    gate_up, dy, logits = (torch.randn(5, size).to(dtype) for size in (4200, 2100, 8200))
    qkv, dq, dk, dv = (torch.randn(5, heads, 24).to(dtype) for heads in (15, 9, 3, 3))
    labels = torch.tensor([IGNORE, 0, 8199, IGNORE, 8192])
    h, a, b, y = (torch.randn(*shape).to(dtype) for shape in ((5, 6), (6, 100), (26, 3), (5, 31)))
    many = torch.randn(67, 100).to(dtype)
    return {
        "dropped_linear": (rows[0], a, *DROPOUT, 1.7),
        "dropped_linear, nothing dropped": (rows[0], a, None, None, 0, 1.7),
        "dropped_linear, more ranks than a program takes": (rows[0], many, *DROPOUT, 1.7),
        "dropped_linear_backward": (h, rows[0], a, *DROPOUT, True),
        "dropped_linear_backward, dA alone": (h, rows[0], a, *DROPOUT, False),
        "dropped_linear_backward, nothing dropped": (h, rows[0], a, None, None, 0, True),
        "adapter_outputs": (h, b, BOUNDS, 31),
        "adapter_outputs_backward": (y, h, b, BOUNDS, 1.7),
        "rms_norm": (rows[0], weight, 1e-5),
        "add_rms_norm": (rows[0], rows[1], weight, 1e-5),
        "rms_norm_backward": (rows[0], None, rows[2], weight, scale, True),
        "rms_norm_backward, add": (*rows, weight, scale, True),
        "rms_norm_backward, frozen weight": (*rows, weight, scale, False),
        "swiglu": (gate_up,),
        "swiglu_backward_": (dy, gate_up),
        "rope_": (qkv, *tables, 9, 3),
        "rope_backward": (dq, dk, dv, *tables),
        "softmax_gradient_": (logits, labels, True),
        "softmax_gradient_, ignored last": (logits, labels.flip(0), True),
        "softmax_gradient_, loss only": (logits, labels, False),
    }


def operation(name):
    return getattr(torch.ops.logtrain, name.split(",")[0]).default


EACH_OPERATION = pytest.mark.parametrize("name", registered())


# Memory beside the tensors


class Fence:
    """Tensors in the midst of NaN: what is read beside them spoils the results, and an output that was not written is
    found. Within `allocations`, whatever operations allocate is such a tensor too. Within `watch`, `strays` counts the
    lanes of loads and stores that reach into a margin, and such a store is left out.
    """

    MARGIN = 2**14  # more than a program takes at once

    def __init__(self):
        self.buffers = {}  # by address
        self.strays = 0

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

    @contextmanager
    def watch(self):
        builder = interpreter.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store

        def watched_load(itself, pointers, mask, *arguments):
            self.strays += (mask.data & self.in_a_margin(pointers)).sum()
            return load(itself, pointers, mask, *arguments)

        def watched_store(itself, pointers, value, mask, *arguments):
            stray = mask.data & self.in_a_margin(pointers)
            self.strays += stray.sum()
            return store(itself, pointers, value, interpreter.TensorHandle(mask.data & ~stray, mask.dtype), *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(builder, "create_masked_load", watched_load)
            patch.setattr(builder, "create_masked_store", watched_store)
            yield

    def in_a_margin(self, pointers):
        found = np.zeros(pointers.data.shape, dtype=bool)
        for start, buffer in self.buffers.items():
            margin, size = self.MARGIN * buffer.itemsize, buffer.nbytes
            at = pointers.data.astype(np.int64) - start
            found |= (at >= 0) & (at < size) & ~((at >= margin) & (at < size - margin))
        return found


def tensors(values):
    return [x for x in (values if isinstance(values, tuple | list) else [values]) if torch.is_tensor(x)]


@EACH_OPERATION
def test_an_operation_reads_and_writes_nothing_beside_its_tensors_and_all_of_its_outputs(name):
    arguments, fence = registered()[name], Fence()
    fenced = [fence.copy(x) for x in arguments]
    with fence.allocations(), fence.watch():
        outputs = tensors(operation(name)(*fenced))
    assert fence.strays == 0
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


@EACH_OPERATION
@DTYPES
def test_an_operation_is_registered_as_pytorch_demands(name, dtype):
    arguments = registered(dtype)[name]
    if name in ("rms_norm", "add_rms_norm", "swiglu"):
        arguments = [x.requires_grad_() if torch.is_tensor(x) else x for x in arguments]
    results = opcheck(operation(name), arguments)
    assert len(results) == 4
    assert set(results.values()) == {"SUCCESS"}


# Layouts


def transposed(x):
    """The values of x with columns first in memory; those of a vector in every second element of memory."""
    if x.ndim > 1:
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return torch.stack((x, torch.full_like(x, torch.nan)), dim=1)[:, 0]


def results_in_layouts(function, inputs, layouts, layout_of_gradients):
    leaves = [layout(x.clone()).requires_grad_() for x, layout in zip(inputs, layouts, strict=True)]
    outputs, generator = tensors(function(*leaves)), torch.Generator().manual_seed(0)
    arriving = [torch.randn(y.shape, generator=generator) for y in outputs]
    torch.autograd.backward(outputs, [layout_of_gradients(dy) if dy.ndim else dy for dy in arriving])
    return [*(y.detach() for y in outputs), *(x.grad for x in leaves)]


LAYOUTS = [(name, i) for name, (_, *shapes) in FUNCTIONS.items() for i in range(len(shapes) + 1)]
LAYOUTS.remove(("linear_cross_entropy", 2))  # a scalar arrives


@pytest.mark.parametrize(("name", "which"), LAYOUTS)
def test_an_input_or_the_gradients_that_arrive_need_not_be_contiguous(name, which):
    function, inputs = function_and_inputs(name)
    layouts = [transposed if i == which else torch.clone for i in range(len(inputs) + 1)]
    expected = results_in_layouts(function, inputs, [torch.clone] * len(inputs), torch.clone)
    found = results_in_layouts(function, inputs, layouts[:-1], layouts[-1])
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def test_labels_need_not_be_contiguous():
    _, inputs = function_and_inputs("linear_cross_entropy")
    strided = torch.stack((LABELS, torch.full_like(LABELS, 7)), dim=1)[:, 0]
    losses = [kernels.linear_cross_entropy(*inputs, labels) for labels in (strided, LABELS)]
    assert losses[0] == losses[1]


# How the kernels meet autograd


@EACH_FUNCTION
def test_gradients_are_those_of_finite_differences(name):
    """They are taken in fp64 around the fp32 of the kernels, and recomputed for each backward, since SwiGLU's can run
    once.
    """
    function, inputs = function_and_inputs(name)
    anew = functools.partial(checkpoint, lambda *x: in_fp32(function, x), use_reentrant=False)
    inputs = [x.double().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(anew, inputs, eps=1e-2, atol=1e-3, rtol=1e-3, fast_mode=True)


def in_fp32(function, inputs):
    outputs = function(*(x.float() for x in inputs))
    return tuple(y.double() for y in outputs) if isinstance(outputs, tuple) else outputs.double()


@pytest.mark.parametrize(
    ("name", "trained"),
    [("swiglu", [0]), ("linear_cross_entropy", [0]), ("linear_cross_entropy", [1]), ("linear_cross_entropy", [0, 1])],
)
def test_a_second_backward_of_what_works_in_place_is_refused_rather_than_wrong(name, trained):
    function, inputs = function_and_inputs(name)
    loss = 2 * function(*(x.requires_grad_(i in trained) for i, x in enumerate(inputs))).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@EACH_FUNCTION
def test_a_second_derivative_is_refused_rather_than_wrong(name):
    """It goes by the function alone and by what came before it: without a refusal the function's part would be
    missing.
    """
    function, inputs = function_and_inputs(name)
    factor = torch.tensor(0.7, requires_grad=True)
    leaves = [x.requires_grad_() for x in inputs]
    loss = sum(y.square().sum() for y in tensors(function(*(factor * x for x in leaves))))
    gradient, *_ = torch.autograd.grad(loss, leaves, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|no autograd formula|differentiate twice"):
        gradient.sum().backward()


@EACH_FUNCTION
def test_gradients_of_inputs_are_not_views_of_one_another(name):
    function, inputs = function_and_inputs(name)
    results = results_in_layouts(function, inputs, [torch.clone] * len(inputs), torch.clone)
    storages = {x.untyped_storage().data_ptr() for x in results[-len(inputs) :]}
    assert len(storages) == len(inputs)


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


def test_losses_alone_leave_the_logits_as_they_are():
    logits, labels = torch.randn(4, 8200), torch.tensor([3, IGNORE, 8192, 8199])
    before = logits.clone()
    losses = torch.ops.logtrain.softmax_gradient_(logits, labels, False)
    assert torch.equal(logits, before)
    assert torch.equal(losses, torch.ops.logtrain.softmax_gradient_(logits, labels, True))
    assert not torch.equal(logits, before)


@pytest.mark.parametrize("masked", [slice(5), slice(8190, None), slice(8192)], ids=str)
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


@NEEDS_2_13
@EACH_FUNCTION
def test_a_compiled_function_is_the_eager_one(name):
    function, inputs = function_and_inputs(name)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert_equal(*(values_and_gradients(f, inputs, torch.float32) for f in (compiled, function)))
