"""Causal attention within each document of the packed rows, with grouped query heads.

    o_t = sum_{s <= t, same document} softmax_s(q_t . k_s / sqrt(H)) v_s

Query head n reads key-value head n // (N / K). `cu_seqlens` holds the first token of every document and then T; it
may repeat T, so that its length stays constant from batch to batch. One document over a whole row is plain causal
attention.

`cached_attention` is for sequences whose earlier tokens are in a cache: C slots for a key and a value, of which each
sequence has a run, from its start on. New tokens are the last of their sequence.

Shapes in names: T tokens, N query heads, K key-value heads, H head size, C slots of a cache, S sequences in it. q, k, v
and the cache are of one float dtype; `cu_seqlens` is int32 [documents + 1, or more].
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import activate_flash_attention_impl, restore_flash_attention_impl
from torch.nn.attention.varlen import varlen_attn

from logtrain_kernels.cost import Cost, nbytes
from logtrain_kernels.device import on_gpu

# By the package that each is in.
BACKENDS = {"torch": "torch", "fa3": "flash_attn_3", "fa4": "flash-attn-4", "flash_attn": "flash-attn"}
IN_REGISTRY = {"fa3": "FA3", "fa4": "FA4"}  # torch's names of what it can put in the place of its own
BEST = (("fa3", (9,), 256), ("fa4", (9, 10), 128))  # in this order: compute capabilities, largest head
ASKS_FOR_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters  # torch 2.11 groups heads unasked
_flash_attn: Callable | None = None  # the flash-attn package's function, once it was asked for


def use_attention(backend: str) -> None:
    """Choose which of BACKENDS `attention` runs on GPUs from now on. torch: the FlashAttention-2 inside PyTorch. fa3:
    FlashAttention-3 (Hopper) in its place, from the package flash_attn_3. fa4: FlashAttention-4 (Hopper, Blackwell),
    from flash-attn-4. flash_attn: the package flash-attn.

    Raises ValueError if the package is not there.
    """
    global _flash_attn
    assert backend in BACKENDS, backend
    restore_flash_attention_impl(_raise_warn=False)
    _flash_attn = None
    try:
        if backend in IN_REGISTRY:
            activate_flash_attention_impl(IN_REGISTRY[backend])
        if backend == "flash_attn":
            _flash_attn = importlib.import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, RuntimeError, ValueError) as error:  # the last of a torch whose registry lacks it
        raise ValueError(f"attention by {backend}: {error}; install {BACKENDS[backend]}, or choose torch") from error


def use_best_attention(capability: int, head_dim: int) -> str:
    """Choose the first of FlashAttention-3, FlashAttention-4 and PyTorch's own that is installed and runs on GPUs of
    this major compute capability with heads of this size; -> which it is, and why not those before it, for the log.
    """
    reasons = []
    for backend, capabilities, largest in BEST:
        if capability not in capabilities:
            reasons.append(f"{backend} has nothing for compute capability {capability}")
        elif head_dim > largest:
            reasons.append(f"{backend} has no heads of {head_dim}")
        else:
            try:
                use_attention(backend)
            except ValueError as error:
                reasons.append(str(error.__cause__))
            else:
                return "; ".join((f"attention by {backend}", *reasons))
    use_attention("torch")
    return "; ".join(("attention by torch", *reasons))


def attention_reference(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """`attention` in plain PyTorch, document by document."""
    lengths = [length for length in cu_seqlens.diff().tolist() if length]
    grouped = q_TNH.shape[1] != k_TKH.shape[1]
    out = []
    for parts in zip(*(x.split(lengths) for x in (q_TNH, k_TKH, v_TKH)), strict=True):  # one backward for all parts
        q, k, v = (x.transpose(0, 1)[None] for x in parts)
        out.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)[0].transpose(0, 1))
    return torch.cat(out)


def attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Attention within each document: q [T, N, H], k and v [T, K, H] in one float dtype, cu_seqlens int32 [documents +
    1], max_seqlen at least the longest document -> [T, N, H].

    On a GPU: FlashAttention (fp16 and bf16 only), see `use_attention`. Elsewhere: the reference.
    """
    if not on_gpu(q_TNH):
        return attention_reference(q_TNH, k_TKH, v_TKH, cu_seqlens)
    lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    if _flash_attn:
        return _flash_attn(q_TNH, k_TKH, v_TKH, *lengths, causal=True)
    grouped: dict[str, Any] = {"enable_gqa": q_TNH.shape[1] != k_TKH.shape[1]} if ASKS_FOR_GROUPS else {}
    out_TNH = varlen_attn(q_TNH, k_TKH, v_TKH, *lengths, window_size=(-1, 0), **grouped)
    assert isinstance(out_TNH, Tensor)  # a tuple only where one asks for more
    return out_TNH


# ---- what FlashAttention costs, and what selective recomputation keeps: attention as CPUs and GPUs run it

ATTENTION_KEPT = (
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
    "torch_attn._varlen_attn.default",
    "flash_attn._flash_attn_varlen_forward.default",
)


def attention_cost(q_TNH: Tensor, k_TKH: Tensor, backward: bool) -> Cost:
    """Bytes and launches of FlashAttention's forward or backward, on rows laid end to end or on a batch [B, N, S, H].
    FLOPs depend on the documents' lengths, which no shape shows.

    The backward keeps dq in fp32, and with grouped heads writes dk and dv for every query head before it sums them
    (flash_api.cpp, mha_varlen_bwd: dq_accum, dk_expanded, dv_expanded).
    """
    q, kv, log_sums = nbytes(q_TNH), 2 * nbytes(k_TKH), 4 * q_TNH.numel() // q_TNH.shape[-1]
    if not backward:
        return Cost(read=q + kv, written=q + log_sums)
    grouped = q_TNH.shape[1] != k_TKH.shape[1]
    return Cost(
        read=3 * q + kv + log_sums,
        written=q + kv,
        launches=3 + 2 * grouped,  # dO . O, the kernel, dq's conversion; two sums
        workspace=4 * q_TNH.numel() + grouped * 2 * q,
    )


# ---- over a cache


class CacheSlots(NamedTuple):
    """Where in a cache the tokens of a step lie."""

    at_T: Tensor
    """int64: the slot of each new token; none twice, but one that nobody reads"""
    starts_S1: Tensor
    """int32: the slot of each sequence's first token; one more entry than sequences, which counts for nothing"""
    lengths_S: Tensor
    """int32: tokens of each sequence, the new ones included"""
    max_length: int
    """at least the longest sequence's tokens"""


FEW = 12  # new tokens of a sequence


def cached_attention_reference(
    q_TNH: Tensor, keys_CKH: Tensor, values_CKH: Tensor, cu_seqlens: Tensor, slots: CacheSlots
) -> Tensor:
    """What `cached_attention` gives once the new tokens are in the cache, in plain PyTorch, sequence by sequence."""
    (_, N, H), K = q_TNH.shape, keys_CKH.shape[1]
    keys_1KCH, values_1KCH = (x.transpose(0, 1)[None] for x in (keys_CKH, values_CKH))
    new, starts, lengths = (x.tolist() for x in (cu_seqlens.diff(), slots.starts_S1, slots.lengths_S))
    out = []
    for q, start, length in zip(q_TNH.split(new), starts, lengths, strict=False):
        k, v = (x.narrow(2, start, length) for x in (keys_1KCH, values_1KCH))
        if 0 < len(q) <= FEW:  # the heads that share keys and values as one head's queries: these are read once
            q = q.reshape(-1, K, N // K, H).transpose(0, 1)
            seen = (
                None if q.shape[1] == 1 else torch.ones(q.shape[1], length, dtype=torch.bool).tril(length - q.shape[1])
            )
            seen = seen if seen is None else seen.repeat_interleave(N // K, 0)
            heads = F.scaled_dot_product_attention(q.reshape(1, K, -1, H), k, v, attn_mask=seen)
            out.append(heads.view(q.shape).transpose(0, 1).reshape(-1, N, H))
        elif len(q):
            seen = None if len(q) == length else torch.ones(len(q), length, dtype=torch.bool).tril(length - len(q))
            heads = F.scaled_dot_product_attention(
                q.transpose(0, 1)[None], k, v, attn_mask=seen, is_causal=seen is None, enable_gqa=N != K
            )
            out.append(heads[0].transpose(0, 1))
    return torch.cat(out)


def cached_attention(
    q_TNH: Tensor,
    k_TKH: Tensor,
    v_TKH: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    keys_CKH: Tensor,
    values_CKH: Tensor,
    slots: CacheSlots,
) -> Tensor:
    """Put the new tokens' keys and values into the cache, in place, and let each new token attend to all of its
    sequence up to itself: q [T, N, H], k and v [T, K, H], the cache's keys and values [C, K, H] -> [T, N, H]. There are
    no gradients.

    `cu_seqlens` (int32 [S + 1]) and `max_seqlen` are of the new tokens, at least one in all; a sequence may have none.
    On a GPU: PyTorch's FlashAttention. Elsewhere: the reference.
    """
    keys_CKH[slots.at_T], values_CKH[slots.at_T] = k_TKH, v_TKH
    if not on_gpu(q_TNH):
        return cached_attention_reference(q_TNH, keys_CKH, values_CKH, cu_seqlens, slots)
    # One token each: `seqused_k` ends what it sees. Only where no window does, FlashAttention reads a key once for all
    # heads that share it and splits a long sequence over the processors.
    decoding = max_seqlen == 1 and len(q_TNH) == len(slots.lengths_S)
    # What varlen_attn calls; called here because torch 2.11's varlen_attn does not take `seqused_k`.
    out_TNH, *_ = torch.ops.aten._flash_attention_forward(
        q_TNH, keys_CKH, values_CKH, cu_seqlens, slots.starts_S1, max_seqlen, slots.max_length,
        dropout_p=0.0, is_causal=not decoding, return_debug_mask=False,
        window_size_left=-1, window_size_right=-1 if decoding else 0, seqused_k=slots.lengths_S,
    )  # fmt: skip
    return out_TNH
