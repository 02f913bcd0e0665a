"""Where an operation runs: as a Triton kernel on a GPU, as its PyTorch reference elsewhere.

Two exceptions: under TRITON_INTERPRET=1 Triton's interpreter runs the kernels on CPU tensors, and within
`triton_everywhere` every tensor counts as a GPU's, so that fake tensors trace what a GPU would run.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch
import triton
from torch import Tensor

H100_PROCESSORS = 132
INTERPRETED = triton.knobs.runtime.interpret  # as it was when the kernels were compiled

_everywhere = False


def uses_triton(x: Tensor) -> bool:
    return x.is_cuda or INTERPRETED or _everywhere


@contextlib.contextmanager
def triton_everywhere() -> Iterator[None]:
    """Within it the public functions choose Triton on any device."""
    global _everywhere
    before, _everywhere = _everywhere, True
    try:
        yield
    finally:
        _everywhere = before


@functools.cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; an H100's for any other device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return H100_PROCESSORS
