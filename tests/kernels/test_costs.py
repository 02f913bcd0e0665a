"""What each kernel's file says of its bytes and launches is what runs: counted while the interpreter runs it."""

import inspect

import pytest
import torch

from benchmarks.kernels.counter import count_of
from benchmarks.kernels.pretend import pretended_h100
from logtrain_kernels import COSTS
from logtrain_kernels.adapted_linear import adapter_outputs_op
from logtrain_kernels.dropped_linear import dropped_linear_backward_op, dropped_linear_op
from logtrain_kernels.float8_norm import rms_norm_largest_op, rms_norm_pair_op
from logtrain_kernels.float8_pair import float8_largest_op, float8_pair_op, float8_transposed_op
from logtrain_kernels.float8_rope import rope_backward_largest_op, rope_backward_pair_op
from logtrain_kernels.float8_rows import float8_rows_op
from logtrain_kernels.float8_swiglu import (
    swiglu_backward_largest_op,
    swiglu_backward_pair_op,
    swiglu_largest_op,
    swiglu_pair_op,
)
from logtrain_kernels.linear_cross_entropy import softmax_gradient_op
from logtrain_kernels.rms_norm import add_rms_norm_op, rms_norm_backward_op, rms_norm_op
from logtrain_kernels.rope import rope_backward_op, rope_op
from logtrain_kernels.swiglu import swiglu_backward_op, swiglu_op
from tests.support.precision import DTYPES, ON_GPU

if ON_GPU:
    pytest.skip("for the interpreter, which counts", allow_module_level=True)

T, ROWS, D, R, V = 128, 140, 128, 16, 8192  # more rows than an H100 has processors
OPERATIONS = {
    op._qualname.removeprefix("logtrain::"): op
    for op in (
        *(
            adapter_outputs_op,
            add_rms_norm_op,
            dropped_linear_op,
            dropped_linear_backward_op,
            rms_norm_op,
        ),
        *(
            float8_largest_op,
            float8_pair_op,
            float8_rows_op,
            float8_transposed_op,
            rms_norm_largest_op,
            rms_norm_pair_op,
        ),
        *(rope_backward_largest_op, rope_backward_pair_op),
        *(swiglu_backward_largest_op, swiglu_backward_pair_op, swiglu_largest_op, swiglu_pair_op),
        *(rms_norm_backward_op, rope_op, rope_backward_op, softmax_gradient_op, swiglu_op, swiglu_backward_op),
    )
}
PRODUCTS_OF_PYTORCH = {"adapter_outputs_backward"}  # whose addmm_ with beta = 0 the counter takes for a read


def calls(dtype: torch.dtype) -> dict[str, tuple]:
    """Arguments by operation and variant. Their sizes are multiples of what programs take, so that none reads twice."""
    x_TD, weight_D = torch.randn(T, D).to(dtype), torch.rand(D).to(dtype)
    rows, scale = [torch.randn(ROWS, D).to(dtype) for _ in range(3)], torch.rand(ROWS)
    qkv, q, k = (torch.randn(8, heads, 32).to(dtype) for heads in (16, 8, 4))
    tables = torch.rand(8, 16), torch.rand(8, 16)
    gate_up, dy = torch.randn(8, 4096).to(dtype), torch.randn(8, 2048).to(dtype)
    logits, labels = torch.randn(8, V).to(dtype), torch.arange(8)
    h, a, b = torch.randn(T, R).to(dtype), torch.randn(R, D).to(dtype), torch.randn(40, R // 2).to(dtype)
    dropout = torch.arange(T) * 2**40, torch.tensor(77, device="cpu"), 3277
    largest = torch.tensor(0x40000000, dtype=torch.int32)  # the bits of 2
    spans = [8, 32, 0, 24, 0, 8, 32, 48, 24, 40, 8, 16]
    return {
        "adapter_outputs": (h, b, spans, 48),
        "adapter_outputs, the last columns have none": (h, b, spans, 64),
        "add_rms_norm": (x_TD, x_TD.clone(), weight_D, 1e-5),
        "dropped_linear": (x_TD, a, *dropout, 1.0),
        "dropped_linear, nothing dropped": (x_TD, a, None, None, 0, 1.0),
        "dropped_linear_backward": (h, x_TD, a, *dropout, True),
        "dropped_linear_backward, dA alone": (h, x_TD, a, *dropout, False),
        "float8_largest": (torch.randn(160, 128).to(dtype),),
        "float8_pair": (x_TD, largest, True, True),
        "float8_pair, one way": (x_TD, largest, False, True),
        "float8_rows": (x_TD, None),
        "float8_rows, with factors": (x_TD, scale[:D]),
        "float8_rows, longer than a block": (torch.randn(3, 20_000).to(dtype), torch.rand(20_000)),
        "float8_transposed": (x_TD.to(torch.float8_e4m3fn),),
        "rms_norm": (x_TD, weight_D, 1e-5),
        "rms_norm_backward": (rows[0], None, rows[1], weight_D, scale, True),
        "rms_norm_backward, add": (*rows, weight_D, scale, True),
        "rms_norm_backward, fewer rows than processors": (rows[0][:9], None, rows[1][:9], weight_D, scale[:9], True),
        "rms_norm_backward, frozen weight": (*rows, weight_D, scale, False),
        "rms_norm_largest": (x_TD, x_TD.clone(), weight_D, 1e-5),
        "rms_norm_largest, no residual": (x_TD, None, weight_D, 1e-5),
        "rms_norm_pair": (x_TD, scale[:T], weight_D, largest, True, True),
        "rms_norm_pair, one way": (x_TD, scale[:T], weight_D, largest, True, False),
        "rope_": (qkv, *tables, 8, 4),
        "rope_backward": (q, k, k.clone(), *tables),
        "rope_backward_largest": (q, k, k.clone(), *tables),
        "rope_backward_pair": (q, k, k.clone(), *tables, largest, True, True),
        "rope_backward_pair, one way, two groups of heads": (qkv, q, q.clone(), *tables, largest, True, False),
        "softmax_gradient_": (logits, labels, True),
        "softmax_gradient_, loss only": (logits, labels, False),
        "swiglu": (gate_up,),
        "swiglu_backward_": (dy, gate_up),
        "swiglu_backward_largest": (dy, gate_up),
        "swiglu_backward_pair": (dy, gate_up, largest, True, True),
        "swiglu_largest": (gate_up,),
        "swiglu_pair": (gate_up, largest, True, True),
        "swiglu_pair, one way": (gate_up, largest, False, True),
    }


@DTYPES
@pytest.mark.parametrize("name", calls(torch.float32))
def test_bytes_and_launches_are_what_the_interpreter_counts(name, dtype):
    operation, arguments = name.split(",")[0], calls(dtype)[name]
    with pretended_h100("cpu"):
        cost = COSTS[operation](*arguments)
        count = count_of(lambda: OPERATIONS[operation](*arguments))
    label_logits = 8 * dtype.itemsize if operation == "softmax_gradient_" else 0  # read beside their rows
    assert cost.read + cost.written == count.moved - label_logits
    assert cost.launches == count.launches
    assert cost.workspace <= cost.written


def test_every_operation_has_a_cost_with_its_own_arguments():
    assert COSTS.keys() == OPERATIONS.keys() | PRODUCTS_OF_PYTORCH
    for name, operation in OPERATIONS.items():
        assert list(inspect.signature(COSTS[name]).parameters) == list(inspect.signature(operation._init_fn).parameters)
