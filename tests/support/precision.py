"""When an operation is right: in the output and in every gradient, its error against fp64 is at most twice PyTorch's
own in the same dtype (and a few roundings of fp32, where PyTorch's happens to be none).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from logtrain_kernels import interpreted

ON_GPU = torch.cuda.is_available()
FEW_ROUNDINGS = 4 * torch.finfo(torch.float32).eps
# Triton's interpreter cuts fp32 down to bf16 where a GPU rounds: an error of up to one unit instead of half of one.
TRUNCATION = torch.finfo(torch.bfloat16).eps
NEEDS_2_13 = pytest.mark.skipif(
    torch.__version__ < "2.13",
    reason="compiles wrong gradients, knows fewer fake tensors",
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@contextmanager
def triton_kernels() -> Iterator[None]:
    """The Triton kernels run: on a GPU, which new tensors are then on, or interpreted where there is none."""
    with torch.device("cuda") if ON_GPU else interpreted():
        yield


def slack_of(way, dtype, truncations=1):
    """What an error may be beyond twice PyTorch's: `truncations` is how many stand between an input and a result."""
    interpreted_bf16 = (way, dtype) == ("triton", torch.bfloat16) and not ON_GPU
    return truncations * TRUNCATION if interpreted_bf16 else FEW_ROUNDINGS


def largest(x):
    return x.abs().max() if x.numel() else x.new_zeros(())


def values_and_gradients(function, inputs, dtype):
    """Outputs, then the gradient of each input, for one fixed random gradient of the outputs."""
    leaves = [x.detach().clone().to(dtype).requires_grad_() for x in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator(inputs[0].device).manual_seed(0)
    weights = [
        torch.randn(y.shape, generator=generator, device=y.device).bfloat16().to(y.dtype) for y in outputs
    ]  # exact in all
    torch.autograd.backward(outputs, weights)
    return [*(y.detach() for y in outputs), *(x.grad for x in leaves)]


def assert_right(ours, pytorch, exact, inputs, dtype, slack=FEW_ROUNDINGS):
    inputs = [x.to(dtype) for x in inputs]  # all three see the same rounded numbers
    results = [
        values_and_gradients(*call)
        for call in ((ours, inputs, dtype), (pytorch, inputs, dtype), (exact, inputs, torch.float64))
    ]
    for i, (mine, theirs, truth) in enumerate(zip(*results, strict=True)):
        assert (mine.shape, mine.dtype) == (truth.shape, theirs.dtype)
        allowed = 2 * largest(theirs.double() - truth) + slack * largest(truth)
        error = largest(mine.double() - truth)
        assert error <= allowed, f"result {i}: error {error:.2e}, allowed {allowed:.2e}"
