"""An operation described once: who computes it how, and the least it can move."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.kernels.shapes import Shape

LIBRARIES = ("logtrain", "liger")
Call = Callable[[], object]
Forward = Callable[[], Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """An operation on given tensors. Plain PyTorch is given as a forward pass; with `leaves` and `gradients` the
    operation is its backward pass alone, with `leaves` and no `gradients` it is both passes of a loss.
    """

    logtrain: Call
    liger: Call | None = None  # where Liger has one
    eager: Forward  # as one would write it in PyTorch
    reference: Forward | None = None  # logtrain's on a CPU
    others: dict[str, Forward] = field(default_factory=dict)
    leaves: tuple[Tensor, ...] = ()  # what PyTorch differentiates by
    gradients: tuple[Tensor, ...] = ()  # of the outputs
    bytes_minimum: dict[str, int] = field(default_factory=dict)  # by library: inputs read once, outputs written once
    flops: int = 0  # of matrix products
    overwritten: tuple[Tensor, ...] = ()  # inputs that a contender overwrites: a clock restores them before each call
    note: str = ""


Operation = Callable[[Shape, int, str], Work]  # sizes, T, device


def by_autograd(forward: Forward, leaves: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Call:
    """What a clock should run for plain PyTorch: the forward, its backward alone, or both (see `Work`)."""
    if not leaves:
        return forward
    for leaf in leaves:
        leaf.requires_grad_()
    if not gradients:
        return lambda: torch.autograd.grad(forward(), leaves)
    outputs = forward()
    return lambda: torch.autograd.grad(outputs, leaves, gradients, retain_graph=True)


def size(*tensors: Tensor) -> int:
    """Bytes of all these tensors."""
    return sum(x.nbytes for x in tensors)


def both(minimum: int) -> dict[str, int]:
    """The least bytes of an operation for which both libraries have the same."""
    return dict.fromkeys(LIBRARIES, minimum)


def normal(*shape: int, device: str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normally distributed numbers."""
    return torch.randn(shape, device=device, dtype=dtype)
