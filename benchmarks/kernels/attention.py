"""Attention over a packed row, forward and backward: documents as they come, all of one length, or the row as one.

FlashAttention-2 launches blocks for the longest document times the entries of `cu_seqlens`, most of which have nothing
to do where lengths differ. Documents of one length do not show that.
"""

import functools
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.documents import lognormal_lengths
from benchmarks.kernels.shapes import Shape
from benchmarks.kernels.work import Operation, Work, by_autograd, normal
from logtrain_kernels import attention, attention_reference

DOCUMENT = 444  # tokens: NLPLog's mean
ROWS = 64  # of documents that are drawn
Bounds = Callable[[int], list[int]]  # T -> cu_seqlens


@functools.cache
def packed_bounds(T: int) -> list[int]:
    """The cu_seqlens of a row of T tokens: documents of NLPLog's lengths as they come, until the row is full."""
    if T < 2:
        return [0, T]
    lengths = lognormal_lengths(max(2, ROWS * T // DOCUMENT), T)
    return [0, *(end for end in lengths.cumsum().tolist() if end < T), T]


def equal_bounds(T: int) -> list[int]:
    """The cu_seqlens of documents of NLPLog's mean length, and a last one of what is left."""
    return [*range(0, T, DOCUMENT), T]


def attention_work(s: Shape, T: int, device: str, bounds: list[int], backward: bool) -> Work:
    """Attention, or its backward, over T tokens in the documents that `bounds` separates."""
    q, k, v = (normal(T, heads, s.H, device=device) for heads in (s.N, s.K, s.K))
    lengths = [stop - start for start, stop in pairwise(bounds) if stop > start]
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
    gradients = (normal(T, s.N, s.H, device=device),) if backward else ()
    leaves = (q, k, v) if backward else ()

    def packed() -> Tensor:
        return attention(q, k, v, cu_seqlens, max(lengths))

    def one_by_one() -> Tensor:
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        return torch.cat([one_document(*part) for part in parts])

    return Work(
        logtrain=by_autograd(packed, leaves, gradients),
        reference=lambda: attention_reference(q, k, v, cu_seqlens),
        eager=one_by_one,
        leaves=leaves,
        gradients=gradients,
        flops=(10 if backward else 4) * pairs * s.N * s.H,  # 2 products of pairs by H forward, 5 backward
    )


def one_document(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
    """PyTorch's attention over one document."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_TNH, k_TKH, v_TKH))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)


def operation(name: str, bounds: Bounds, backward: bool) -> Operation:
    """Attention, or its backward, over the documents of `bounds`."""

    def work(s: Shape, T: int, device: str) -> Work:
        return attention_work(s, T, device, bounds(T), backward)

    work.__name__ = name + ("_backward" if backward else "")
    return work


ATTENTION = tuple(
    operation(name, bounds, backward)
    for name, bounds in (
        ("attention_documents", packed_bounds),
        ("attention_equal", equal_bounds),
        ("attention_row", lambda T: [0, T]),
    )
    for backward in (False, True)
)
