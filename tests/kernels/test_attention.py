"""Attention, over packed documents and over a cache, against PyTorch's own and against fp64."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

import logtrain_kernels as kernels
from tests.support.precision import DTYPES, ON_GPU, assert_right, largest

CU_SEQLENS = (0, 1, 20, 37, 64, 64, 64)  # padded with T, documents of length 1 and up
BOUNDS = {"several": CU_SEQLENS, "one": (0, 50), "200": tuple(i * 3 // 2 for i in range(201))}  # of 1 or 2 tokens


def mask_of(cu_seqlens):
    """Whether token t may see token s: [T, T]."""
    document = torch.cat([torch.full((stop - start,), i) for i, (start, stop) in enumerate(pairwise(cu_seqlens))])
    return (document[:, None] == document) & torch.ones(len(document), len(document), dtype=torch.bool).tril()


ATTENTIONS = {
    "public": lambda q, k, v, cu_seqlens: kernels.attention(q, k, v, cu_seqlens, 60),  # 60: more than the longest
    "reference": kernels.attention_reference,
}


@DTYPES
@pytest.mark.parametrize("documents", BOUNDS)
@pytest.mark.parametrize("num_kv_heads", [1, 4, 8])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_attention(attention, num_kv_heads, documents, dtype):
    num_heads, head_dim, mask = 8, 16, mask_of(BOUNDS[documents])
    cu_seqlens = torch.tensor(BOUNDS[documents], dtype=torch.int32)

    def repeated(x):
        return x.repeat_interleave(num_heads // num_kv_heads, dim=1).transpose(0, 1)

    def pytorch(q, k, v):
        out = F.scaled_dot_product_attention(q.transpose(0, 1), repeated(k), repeated(v), attn_mask=mask)
        return out.transpose(0, 1)

    def exact(q, k, v):
        scores = torch.einsum("tnh,nsh->nts", q, repeated(k)) / math.sqrt(head_dim)
        return torch.einsum("nts,nsh->tnh", scores.masked_fill(~mask, -math.inf).softmax(-1), repeated(v))

    shapes = [(len(mask), heads, head_dim) for heads in (num_heads, num_kv_heads, num_kv_heads)]
    # PyTorch beside PyTorch: its two ways differ by a rounding or two of their own.
    inputs, slack = [torch.randn(shape) * 2 for shape in shapes], 4 * torch.finfo(dtype).eps
    assert_right(lambda q, k, v: ATTENTIONS[attention](q, k, v, cu_seqlens), pytorch, exact, inputs, dtype, slack)


@pytest.mark.skipif(not ON_GPU, reason="FlashAttention needs a GPU")
@pytest.mark.parametrize("documents", [(0, 1024), (0, 1, 300, 812, 1024, 1024), tuple(range(0, 1025, 4))], ids=len)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("num_kv_heads", [1, 8])
def test_attention_on_a_gpu_is_that_of_the_reference(num_kv_heads, head_dim, documents):
    with torch.device("cuda"):
        cu_seqlens = torch.tensor(documents, dtype=torch.int32)
        inputs = [torch.randn(1024, heads, head_dim) for heads in (8, num_kv_heads, num_kv_heads)]
        assert_right(
            lambda q, k, v: kernels.attention(q, k, v, cu_seqlens, 1024),
            lambda q, k, v: kernels.attention_reference(q, k, v, cu_seqlens),
            lambda q, k, v: kernels.attention_reference(q, k, v, cu_seqlens),
            inputs,
            torch.bfloat16,
            slack=4 * torch.finfo(torch.bfloat16).eps,
        )


def test_a_document_neither_sees_nor_moves_another():
    cu_seqlens = torch.tensor(CU_SEQLENS, dtype=torch.int32)
    q, k, v = (torch.randn(64, heads, 16, requires_grad=True) for heads in (8, 2, 2))
    before = kernels.attention(q, k, v, cu_seqlens, 27)
    own = slice(20, 37)
    before[own].square().sum().backward()
    for x in (q, k, v):
        outside = torch.cat((x.grad[:20], x.grad[37:]))
        assert torch.count_nonzero(outside) == 0
        assert torch.count_nonzero(x.grad[own]) > 0
    with torch.no_grad():
        for x in (q, k, v):
            x[:20] += 1
            x[37:] -= 1
        after = kernels.attention(q, k, v, cu_seqlens, 27)
    assert torch.equal(before[own], after[own])
    assert not torch.equal(before[:20], after[:20])


# Attention over a cache

CHUNKS = {  # slots of a cache of 200, and the chunks in which each sequence comes; 0: nothing in that step
    "whole": [(3, [40])],
    "token by token": [(3, [1] * 9), (60, [1] * 9)],
    "unequal": [(150, [7, 0, 20, 1]), (3, [30, 1, 1, 0]), (90, [0, 0, 5, 2])],
}


def steps_over_a_cache(chunks: str, num_kv_heads: int, dtype: torch.dtype, head_dim: int = 16):
    """Yields, for each step, its arguments and what attention over each whole sequence gives for the new tokens."""
    starts, takes = zip(*CHUNKS[chunks], strict=True)
    whole = [
        [torch.randn(sum(take), heads, head_dim, dtype=dtype) for heads in (8, num_kv_heads, num_kv_heads)]
        for take in takes
    ]
    keys, values = (torch.full((200, num_kv_heads, head_dim), 1e4, dtype=dtype) for _ in range(2))
    known = [0] * len(takes)
    for counts in zip(*takes, strict=True):
        new = [[x[a : a + n] for x in qkv] for qkv, a, n in zip(whole, known, counts, strict=True)]
        at = [range(start + a, start + a + n) for start, a, n in zip(starts, known, counts, strict=True)]
        known = [a + n for a, n in zip(known, counts, strict=True)]
        expected = [
            kernels.attention_reference(*(x[:length] for x in qkv), torch.tensor([0, length]))[length - n :]
            for qkv, length, n in zip(whole, known, counts, strict=True)
            if n
        ]
        slots = kernels.CacheSlots(
            torch.tensor([slot for run in at for slot in run]),
            torch.tensor([*starts, 0], dtype=torch.int32),
            torch.tensor(known, dtype=torch.int32),
            max(known),
        )
        cu_seqlens = torch.tensor([0, *counts]).cumsum(0).int()
        q, k, v = (torch.cat(parts) for parts in zip(*new, strict=True))
        yield (q, k, v, cu_seqlens, max(counts), keys, values, slots), torch.cat(expected)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("num_kv_heads", [1, 2, 8])
def test_attention_over_a_cache_is_that_over_the_whole_sequence(num_kv_heads, chunks):
    for arguments, expected in steps_over_a_cache(chunks, num_kv_heads, torch.float64):
        assert largest(kernels.cached_attention(*arguments) - expected) < 1e-12
    keys, _, slots = arguments[-3:]
    lengths, starts = slots.lengths_S.tolist(), slots.starts_S1.tolist()
    nobodys = torch.ones(200, dtype=torch.bool)
    for start, length in zip(starts, lengths, strict=False):
        nobodys[start : start + length] = False
    assert (keys[nobodys] == 1e4).all()
    assert (keys[~nobodys] != 1e4).all()


@pytest.mark.skipif(not ON_GPU, reason="FlashAttention needs a GPU")
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("num_kv_heads", [1, 8])
def test_attention_over_a_cache_on_a_gpu_is_that_of_the_reference(num_kv_heads, chunks):
    with torch.device("cuda"):
        for arguments, expected in steps_over_a_cache(chunks, num_kv_heads, torch.bfloat16, head_dim=64):
            error = largest(kernels.cached_attention(*arguments).double() - expected.double())
            assert error < 8 * torch.finfo(torch.bfloat16).eps * largest(expected)
