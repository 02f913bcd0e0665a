"""Causal attention within each document of the packed rows, with grouped query heads.

    o_t = sum_{s <= t, same document} softmax_s(q_t . k_s / sqrt(H)) v_s

Query head n reads key-value head n // (N / K). `cu_seqlens` holds the first token of every document and then T; it
may repeat T, so that its length stays constant from batch to batch. One document over a whole row is plain causal
attention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn


def attention_reference(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cu_seqlens: Tensor) -> Tensor:
    lengths = [length for length in cu_seqlens.diff().tolist() if length]
    grouped = q_TNH.shape[1] != k_TKH.shape[1]
    out = []
    for parts in zip(*(x.split(lengths) for x in (q_TNH, k_TKH, v_TKH)), strict=True):  # one backward for all parts
        q, k, v = (x.transpose(0, 1)[None] for x in parts)
        out.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)[0].transpose(0, 1))
    return torch.cat(out)


def attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """q [T, N, H], k and v [T, K, H] in one float dtype, cu_seqlens int32 [documents + 1], max_seqlen: at least the
    longest -> [T, N, H].

    On cuda: FlashAttention within PyTorch (fp16 and bf16 only). Elsewhere: the reference.
    """
    if q_TNH.is_cuda:
        gqa = q_TNH.shape[1] != k_TKH.shape[1]
        return varlen_attn(
            q_TNH, k_TKH, v_TKH, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=(-1, 0), enable_gqa=gqa
        )
    return attention_reference(q_TNH, k_TKH, v_TKH, cu_seqlens)
