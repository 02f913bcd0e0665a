"""The products of LoRA that have kernels of their own, with dropout, for adapters of rank 16: those of query, key and
value, which share their input, and of the matrix with the widest one.

Liger-Kernel has nothing like them. Plain PyTorch gets the mask as a tensor, which it would have to draw first.
"""

import torch

from benchmarks.kernels.shapes import Shape
from benchmarks.kernels.work import Operation, Work, normal, size
from logtrain_kernels import dropout_steps
from logtrain_kernels.dropout import kept_reference, kept_scale
from logtrain_kernels.dropped_linear import dropped_linear_backward_op, dropped_linear_op, dropped_linear_reference

DROP = dropout_steps(0.05)
LAYERS = {"qkv": (48, lambda s: s.D), "down": (16, lambda s: s.F)}  # ranks and width of the input


def adapter_work(T: int, D: int, R: int, device: str, backward: bool) -> Work:
    """dropped_linear, or its backward, on T tokens with D features and R ranks."""
    x, a, h = normal(T, D, device=device), normal(R, D, device=device), normal(T, R, device=device)
    dropout = torch.arange(T, device=device) * 2**40 + 1309, torch.tensor(2**62 + 1309, device="cpu"), DROP
    mask = kept_reference(*dropout, D).to(x.dtype) * kept_scale(DROP)
    forward = size(x, a, dropout[0], h)
    return Work(
        logtrain=(lambda: dropped_linear_backward_op(h, x, a, *dropout, True))
        if backward
        else (lambda: dropped_linear_op(x, a, *dropout, 1.0)),
        reference=lambda: dropped_linear_reference(x, a, *dropout, 1.0),
        eager=lambda: (x * mask) @ a.T,
        leaves=(x, a) if backward else (),
        gradients=(h,) if backward else (),
        bytes_minimum={"logtrain": forward + size(x, a) if backward else forward},
        flops=(4 if backward else 2) * T * D * R,
    )


def operation(layer: str, backward: bool) -> Operation:
    """dropped_linear, or its backward, of one of LAYERS."""
    ranks, width = LAYERS[layer]

    def work(s: Shape, T: int, device: str) -> Work:
        return adapter_work(T, width(s), ranks, device, backward)

    work.__name__ = f"dropped_linear_{layer}{'_backward' if backward else ''}"
    return work


ADAPTERS = tuple(operation(layer, backward) for layer in LAYERS for backward in (False, True))
