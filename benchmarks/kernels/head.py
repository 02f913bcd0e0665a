"""The head's loss: its kernel on one chunk of logits, and the whole, which is mostly matrix products."""

import torch
import torch.nn.functional as F
from liger_kernel.ops import cross_entropy as liger_cross_entropy
from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

from benchmarks.kernels.shapes import Shape
from benchmarks.kernels.work import Work, both, by_autograd, normal, size
from logtrain_kernels.linear_cross_entropy import IGNORE, linear_cross_entropy, softmax_gradient_op


def softmax(s: Shape, T: int, device: str, with_gradient: bool) -> Work:
    """The head's kernel on a chunk of T tokens."""
    logits, labels = normal(T, s.V, device=device), torch.randint(s.V, (T,), device=device)
    logits.requires_grad_(with_gradient)  # by this Liger decides
    return Work(
        logtrain=lambda: softmax_gradient_op(logits.detach(), labels, with_gradient),
        liger=lambda: liger_cross_entropy.cross_entropy_forward(
            logits, labels, None, IGNORE, 0.0, 0.0, "sum", None, False
        ),
        eager=lambda: F.cross_entropy(logits, labels, reduction="sum"),
        leaves=(logits,) if with_gradient else (),
        overwritten=(logits.detach(),) if with_gradient else (),
        bytes_minimum=both(size(logits, labels) + (size(logits) if with_gradient else 0) + 4 * T),
        note="reads the logits twice: a token's do not fit the registers of a program" if with_gradient else "",
    )


def softmax_gradient(s: Shape, T: int, device: str) -> Work:
    """Loss and gradient by a chunk's logits."""
    return softmax(s, T, device, True)


def softmax_loss(s: Shape, T: int, device: str) -> Work:
    """The loss alone."""
    return softmax(s, T, device, False)


def head_and_loss(s: Shape, T: int, device: str) -> Work:
    """The whole of linear_cross_entropy, forward and backward."""
    x, w = normal(T, s.D, device=device), normal(s.V, s.D, device=device)
    labels = torch.randint(s.V, (T,), device=device)
    options = (None, None, IGNORE, 0.0, 0.0, "sum", None, False, torch.float32)  # fp32: sums dW as we do
    leaves = x.requires_grad_(), w.requires_grad_()
    others = {}
    if hasattr(F, "linear_cross_entropy"):  # PyTorch 2.13
        chunked = torch.nn.LinearCrossEntropyOptions()
        others["F.linear_cross_entropy"] = lambda: F.linear_cross_entropy(
            x, w, labels, reduction="sum", options=chunked
        )
    return Work(
        logtrain=by_autograd(lambda: linear_cross_entropy(x, w, labels), leaves, ()),
        liger=by_autograd(lambda: LigerFusedLinearCrossEntropyFunction.apply(x, w, labels, *options)[0], leaves, ()),
        reference=lambda: linear_cross_entropy(x, w, labels),
        eager=lambda: F.cross_entropy(F.linear(x, w), labels, reduction="sum"),
        others=others,
        leaves=leaves,
        flops=3 * 2 * T * s.D * s.V,  # logits, dx, dW
    )
