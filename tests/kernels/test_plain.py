"""In inference mode on a CPU the operations are PyTorch's own calls, with the results of the registered ones."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from logtrain_kernels import add_rms_norm, rope, swiglu
from tests.support.precision import triton_kernels


class Seen(TorchDispatchMode):
    """Which of our registered operations are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        if operation.namespace == "logtrain":
            self.names.append(operation._opname)
        return operation(*arguments, **(keywords or {}))


def results(dtype: torch.dtype) -> tuple[list[torch.Tensor], list[str]]:
    """What the three give for the same inputs, and which registered operations that took."""
    draw = torch.Generator().manual_seed(0)
    x, residual, weight, gate_up = (
        torch.randn(*shape, generator=draw).to(dtype) for shape in ((5, 48), (5, 48), (48,), (5, 96))
    )
    qkv = torch.randn(5, 6, 8, generator=draw).to(dtype)
    angles = torch.randn(5, 4, generator=draw)
    with Seen() as seen:
        found = [
            *add_rms_norm(x, residual, weight, 1e-5),
            *rope(qkv, angles.cos(), angles.sin(), 2, 2),
            swiglu(gate_up),
        ]
    return found, seen.names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_inference_has_the_results_of_the_registered_operations(dtype):
    registered, names = results(dtype)
    assert names == ["add_rms_norm", "rope_", "swiglu"]
    with torch.no_grad():
        assert results(dtype)[1] == names, "a step that is traced without gradients is made of operations"
    with torch.inference_mode():
        plain, names = results(dtype)
        assert names == []
        with triton_kernels():
            assert results(dtype)[1] == ["add_rms_norm", "rope_", "swiglu"], "they are kernels"
    for one, other in zip(plain, registered, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("within", [contextlib.nullcontext, torch.inference_mode])
def test_they_are_compiled_without_a_break(within):
    """As the blocks are on GPUs, in one graph, in which the registered operations are."""

    def step(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        total, normed = add_rms_norm(x, residual, weight, 1e-5)
        q, k, v = rope(normed.unflatten(-1, (6, 8)), angles.cos(), angles.sin(), 2, 2)
        return swiglu(torch.cat((q, k, v), 1).flatten(1)) + total[:, :24]

    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=draw) for shape in ((5, 48), (5, 48), (48,), (5, 4))]
    with within():
        found = torch.compile(step, backend="eager", fullgraph=True)(*inputs)
        assert torch.equal(found, step(*inputs))
