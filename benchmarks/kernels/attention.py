"""Attention over a packed row, forward and backward: documents of NLPLog's mean length, or the row as one document."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.shapes import Shape
from benchmarks.kernels.work import Operation, Work, by_autograd, normal
from logtrain_kernels import attention, attention_reference

DOCUMENT = 444  # tokens


def attention_work(s: Shape, T: int, device: str, document: int, backward: bool) -> Work:
    """Attention, or its backward, over T tokens in documents of `document` tokens."""
    q, k, v = (normal(T, heads, s.H, device=device) for heads in (s.N, s.K, s.K))
    bounds = [*range(0, T, document), T]
    lengths = [stop - start for start, stop in pairwise(bounds)]
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


def operation(name: str, document: int | None, backward: bool) -> Operation:
    """Attention, or its backward, in documents of `document` tokens; None: the row is one."""

    def work(s: Shape, T: int, device: str) -> Work:
        return attention_work(s, T, device, document or T, backward)

    work.__name__ = name
    return work


ATTENTION = (
    operation("attention_documents", DOCUMENT, False),
    operation("attention_documents_backward", DOCUMENT, True),
    operation("attention_row", None, False),
    operation("attention_row_backward", None, True),
)
