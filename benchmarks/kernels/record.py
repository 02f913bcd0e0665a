"""Which Triton kernels an operation launches, and with what: recorded on the way to the GPU, which gets nothing."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from benchmarks.kernels.pretend import pretended_h100


@dataclass(frozen=True)
class Launch:
    """A kernel on its way to the GPU."""

    kernel: JITFunction
    args: tuple
    options: dict  # keyword arguments: the kernel's own, and num_warps and its like
    grid: tuple[int, ...]


class OneForItem(TorchDispatchMode):
    """Tensors on meta have no values; Liger asks for one (how many targets there are) and gets 1."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect what is launched meanwhile, and launch nothing."""
    launches: list[Launch] = []

    def run(kernel: JITFunction, *args, grid: tuple[int, ...], warmup: bool, **options) -> None:
        launches.append(Launch(kernel, args, options, grid))

    with mock.patch.object(JITFunction, "run", run):
        yield launches


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """What a call on meta tensors launches on an H100."""
    with recording() as launches, pretended_h100("meta"), OneForItem():
        call()
    return launches
