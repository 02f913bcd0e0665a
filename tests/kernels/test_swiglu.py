"""SwiGLU against PyTorch's own and against fp64."""

import pytest
import torch
import torch.nn.functional as F

import logtrain_kernels as kernels
from tests.support.precision import DTYPES, assert_right, slack_of


def swiglu_by_pytorch(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_exact(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


@DTYPES
@pytest.mark.parametrize("shape", [(0, 90), (1, 4), (5, 4097), (123, 90)], ids=str)
def test_swiglu(shape, dtype, way):
    gate_up = torch.randn(shape[0], 2 * shape[1])
    assert_right(kernels.swiglu, swiglu_by_pytorch, swiglu_exact, [gate_up], dtype, slack_of(way, dtype))


@DTYPES
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of the interpreter, at -200
def test_swiglu_of_gates_whose_exponential_overflows(dtype, way):
    gate_up = torch.tensor([[-200.0, 200.0, 0.0, -20.0, 0.5, -1.0, 2.0, 1.0]])
    assert_right(kernels.swiglu, swiglu_by_pytorch, swiglu_exact, [gate_up], dtype, slack_of(way, dtype))
