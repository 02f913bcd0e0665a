"""Where an operation runs: as a Triton kernel on a GPU, as its PyTorch reference elsewhere.

Two modes lift the rule, for evidence without a GPU: `interpreted` runs the Triton kernels on CPU tensors, by Triton's
interpreter (TRITON_INTERPRET=1 when this package is imported); `pretended_gpu` takes every tensor for a GPU's, so that
fake tensors trace what a GPU would run.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from triton import knobs

H100_PROCESSORS = 132
CAN_INTERPRET = bool(knobs.runtime.interpret)  # decided when a kernel is defined, so at import

_mode: str | None = None


def on_gpu(x: Tensor) -> bool:
    """Whether a tensor, of any shape and any dtype, is on a GPU, or counts as if it were."""
    return x.is_cuda or _mode == "gpu"


def uses_triton(x: Tensor) -> bool:
    """Whether an operation on a tensor, of any shape and any dtype, runs as its Triton kernel."""
    return x.is_cuda or _mode is not None


def is_plain(x: Tensor) -> bool:
    """Whether an operation on a tensor, of any shape and any dtype, need not be one that PyTorch has registered: in
    inference mode elsewhere than on a GPU. A registered one takes 10 us more, of the 300 of a layer for one token.
    """
    if torch.compiler.is_compiling():  # and Dynamo does not trace what follows
        return False
    return torch.is_inference_mode_enabled() and not uses_triton(x)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Run the Triton kernels on CPU tensors, by Triton's interpreter.

    Raises ValueError if the kernels were defined for compilation.
    """
    if not CAN_INTERPRET:
        raise ValueError("Triton kernels were compiled, not interpreted: set TRITON_INTERPRET=1 before Python starts")
    with _set_mode("interpreter"):
        yield


@contextlib.contextmanager
def pretended_gpu() -> Iterator[None]:
    """Take every tensor for a GPU's. That is for fake tensors alone: on real CPU tensors the kernels fail."""
    with _set_mode("gpu"):
        yield


@contextlib.contextmanager
def _set_mode(mode: str) -> Iterator[None]:
    global _mode
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


@functools.cache
def num_processors(device: torch.device) -> int:
    """How many streaming multiprocessors a GPU has; for any other device, those of an H100."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return H100_PROCESSORS


# The functions of MKL's vector library that PyTorch calls on CPUs, each from several threads at once, in or around a
# training step.
VECTOR_FUNCTIONS = (torch.cos, torch.sin, torch.exp, torch.log, torch.sqrt, torch.tanh)


def settle_vector_functions() -> None:
    """Call each of VECTOR_FUNCTIONS once from one thread. MKL (2024.2, in torch's wheels) chooses among a function's
    variants at its first call, and a thread that comes while another one is choosing may get the variant of the lowest
    precision, of some 12 bits (pytorch/pytorch issue 188792). A softmax of which half was taken so had gradients with
    relative errors of 7e-5, at the first step alone; all others have 4e-6.
    """
    one = torch.ones(1)
    for function in VECTOR_FUNCTIONS:
        function(one)
