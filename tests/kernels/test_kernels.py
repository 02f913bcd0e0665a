"""RMSNorm, rotary embedding, SwiGLU, attention and adapters against PyTorch's own and against fp64."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

import logtrain_kernels as kernels
from logtrain_kernels import AdapterSpan, Llama3Scaling, dropped_linear, rope_tables
from logtrain_kernels.dropout import kept_reference, kept_scale
from tests.support.precision import DTYPES, ON_GPU, assert_right, largest, slack_of

LLAMA31 = Llama3Scaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)  # Llama-3.1-8B
LLAMA32 = Llama3Scaling(
    factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)  # Llama-3.2-1B


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1309)


# RMSNorm


def rms_norm_exact(x, weight, eps=1e-5):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


@DTYPES
@pytest.mark.parametrize("shape", [(0, 96), (1, 64), (5, 4097), (123, 96)], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_rms_norm(shape, scale, dtype, way):
    x, weight = torch.randn(shape) * scale, torch.rand(shape[-1]) + 0.5
    norm = torch.nn.RMSNorm(shape[-1], eps=1e-5)
    assert_right(
        lambda x, w: kernels.rms_norm(x, w, 1e-5),
        lambda x, w: torch.func.functional_call(norm, {"weight": w}, x),
        rms_norm_exact,
        [x, weight],
        dtype,
        slack_of(way, dtype),
    )


@DTYPES
@pytest.mark.parametrize("shape", [(0, 96), (1, 1), (5, 2049), (123, 96)], ids=str)
def test_add_rms_norm_adds_first_and_normalises_the_sum(shape, dtype, way):
    x, residual, weight = torch.randn(shape), torch.randn(shape) * 5, torch.rand(shape[-1]) + 0.5
    assert_right(
        lambda x, r, w: kernels.add_rms_norm(x, r, w, 1e-5),
        lambda x, r, w: (r + x, F.rms_norm(r + x, shape[-1:], w, 1e-5)),
        lambda x, r, w: (r + x, rms_norm_exact(r + x, w)),
        [x, residual, weight],
        dtype,
        slack_of(way, dtype, truncations=2),  # the sum, and what is made of it
    )


@pytest.mark.parametrize("wanted", ["sum", "norm"])
def test_either_result_of_add_rms_norm_may_go_nowhere(wanted, way):
    def wanted_of(total, normed):
        return total if wanted == "sum" else normed

    assert_right(
        lambda x, r, w: wanted_of(*kernels.add_rms_norm(x, r, w, 1e-5)) + 0 * w,
        lambda x, r, w: wanted_of(r + x, F.rms_norm(r + x, (24,), w, 1e-5)) + 0 * w,
        lambda x, r, w: wanted_of(r + x, rms_norm_exact(r + x, w)) + 0 * w,
        [torch.randn(5, 24), torch.randn(5, 24), torch.rand(24)],
        torch.float32,
    )


def test_a_frozen_weight_gets_no_gradient_and_changes_no_one_elses(way):
    x, residual, weight = torch.randn(7, 24, requires_grad=True), torch.randn(7, 24), torch.rand(24)
    gradients = []
    for trained in (True, False):
        weight.grad = None
        loss = sum(y.square().sum() for y in kernels.add_rms_norm(x, residual, weight.requires_grad_(trained), 1e-5))
        gradients.append(torch.autograd.grad(loss, [x])[0])
    assert torch.equal(*gradients)
    assert gradients[0].count_nonzero() > 0


def test_the_residual_stream_starts_with_the_first_input(way):
    x, weight = torch.randn(7, 32), torch.rand(32)
    residual, normed = kernels.add_rms_norm(x, None, weight, 1e-6)
    assert torch.equal(residual, x)
    assert torch.equal(normed, kernels.rms_norm(x, weight, 1e-6))


# Rotary embedding


def test_frequencies_are_those_of_transformers():
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    positions = torch.tensor([0, 1, 2, 511, 8191, 100_000, 131_071], dtype=torch.int32)
    for head_dim, theta, scaling in ((128, 500_000.0, LLAMA31), (64, 500_000.0, LLAMA32), (64, 10_000.0, None)):
        parameters = {"rope_type": "default", "rope_theta": theta}
        if scaling:
            parameters |= {"rope_type": "llama3", **vars(scaling)}
        config = LlamaConfig(head_dim=head_dim, rope_parameters=parameters, max_position_embeddings=131_072)
        cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(()), positions[None].long())
        tables = rope_tables(positions, head_dim, theta, scaling)
        # The frequencies agree to an fp32 rounding (6e-8), at position 131,071 that is 8e-3 of an angle.
        allowed = 2e-7 * positions[:, None] + 1e-7
        for ours, theirs in zip(tables, (cos, sin), strict=True):
            assert ours.dtype == torch.float32
            assert ((ours - theirs[0, :, : head_dim // 2]).abs() <= allowed).all()


def test_llama3_scaling_keeps_short_wavelengths_and_stretches_long_ones_by_the_factor():
    from logtrain_kernels.rope import inverse_frequencies

    plain, scaled = (inverse_frequencies(128, 500_000.0, scaling) for scaling in (None, LLAMA31))
    wavelength = 2 * math.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192 / 1
    assert short.sum() > 20
    assert long.sum() > 20
    assert (~(short | long)).sum() >= 4
    assert torch.equal(scaled[short], plain[short])
    torch.testing.assert_close(scaled[long], plain[long] / 8, rtol=1e-6, atol=0)
    between = scaled[~(short | long)] / plain[~(short | long)]
    assert ((between > 1 / 8) & (between < 1)).all()
    assert (between.diff() < 0).all()  # the longer the wave, the more it is stretched


@DTYPES
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim"),
    [(0, 3, 1, 16), (1, 8, 8, 128), (5, 8, 2, 64), (7, 1, 1, 2), (7, 9, 3, 24), (123, 3, 1, 16)],
)
def test_rope_turns_each_pair_as_a_complex_number(num_tokens, num_heads, num_kv_heads, head_dim, dtype, way):
    theta = 10_000.0
    positions = torch.tensor([0, 511, 300, *range(1, 121)])[:num_tokens]
    frequency = torch.tensor([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)], dtype=torch.float64)

    def parts(qkv, turned):
        q, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
        return turned(q), turned(k), v

    def turned_exactly(x):
        first, second = x.chunk(2, dim=-1)
        angle = (positions[:, None] * frequency)[:, None]
        turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((turned.real, turned.imag), dim=-1)

    tables = rope_tables(positions.int(), head_dim, theta, None)

    def turned_by_transformers(x):
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        cos, sin = (torch.cat((table, table), dim=-1)[None].to(x.dtype) for table in tables)
        return apply_rotary_pos_emb(x[None], x[None], cos, sin, unsqueeze_dim=2)[0][0]

    assert_right(
        lambda qkv: kernels.rope(qkv.clone(), *tables, num_heads, num_kv_heads),
        lambda qkv: parts(qkv, turned_by_transformers),
        lambda qkv: parts(qkv, turned_exactly),
        [torch.randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim)],
        dtype,
        slack_of(way, dtype),
    )


# SwiGLU


def swiglu_by_pytorch(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_exact(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


@DTYPES
@pytest.mark.parametrize("shape", [(0, 90), (1, 4), (5, 4097), (123, 90)], ids=str)
def test_swiglu(shape, dtype, way):
    gate_up = torch.randn(shape[0], 2 * shape[1])
    assert_right(kernels.swiglu, swiglu_by_pytorch, swiglu_exact, [gate_up], dtype, slack_of(way, dtype))


@DTYPES
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of the interpreter, at -200
def test_swiglu_of_gates_whose_exponential_overflows(dtype, way):
    gate_up = torch.tensor([[-200.0, 200.0, 0.0, -20.0, 0.5, -1.0, 2.0, 1.0]])
    assert_right(kernels.swiglu, swiglu_by_pytorch, swiglu_exact, [gate_up], dtype, slack_of(way, dtype))


# Adapters


def spans_of_layers(rank, adapted, out):
    """The spans of adapters on layers (first column, last one's next), and the rows of all Bs; columns between layers
    have no adapter.
    """
    found, row = [], 0
    for i, (start, stop) in enumerate(adapted):
        assert start < stop <= out
        rows, ranks = slice(row, row + stop - start), slice(i * rank, (i + 1) * rank)
        found.append(AdapterSpan(slice(start, stop), rows, ranks))
        row += stop - start
    return found, row


@pytest.fixture(params=[1, 3], ids=["one part", "three parts"])
def parts(request, monkeypatch):
    """In how many parts the gradient of A is summed."""
    monkeypatch.setattr(dropped_linear, "num_parts", lambda *_: request.param)


@DTYPES
@pytest.mark.parametrize("drop", [0, 3277, 40_000])
@pytest.mark.parametrize(
    ("num_tokens", "width", "out", "rank", "adapted"),
    [
        (0, 24, 10, 3, [(0, 10)]),
        (1, 1, 1, 1, [(0, 1)]),
        (150, 129, 50, 3, [(5, 20), (20, 21), (30, 50)]),  # with columns that have none
        (64, 200, 48, 16, [(0, 48)]),
        (130, 96, 64, 16, [(0, 32), (32, 48), (48, 64)]),
        (200, 48, 40, 33, [(0, 20), (20, 40)]),
        (70, 40, 24, 130, [(0, 12), (12, 24)]),  # more ranks than the kernels take
    ],
    ids=str,
)
def test_adapted_linear(num_tokens, width, out, rank, adapted, drop, dtype, way, parts):
    spans, rows = spans_of_layers(rank, adapted, out)
    weight, scale = (torch.randn(out, width) / width**0.5).bfloat16(), 0.75
    seeds = torch.randint(-(2**62), 2**62, (num_tokens,)) if drop else None
    dropout = seeds, torch.tensor(-(2**61) + 5, device="cpu"), drop
    mask = kept_reference(*dropout, width) * kept_scale(drop) if drop else 1.0

    def pytorch(x, a, b):
        y, dropped = F.linear(x, weight.to(x.dtype)), x * torch.as_tensor(mask, dtype=x.dtype)
        added = torch.zeros_like(y)
        for span in spans:
            added[:, span.columns] = dropped @ a[span.ranks].T @ b[span.rows].T * scale
        return y + added

    assert_right(
        lambda x, a, b: kernels.adapted_linear(x, weight.to(x.dtype), a, b, spans, scale, *dropout),
        pytorch,
        pytorch,
        [torch.randn(num_tokens, width), torch.randn(rank * len(spans), width) / width**0.5, torch.randn(rows, rank)],
        dtype,
        slack_of(way, dtype, truncations=2),  # h, and what is made of it
    )


def test_adapters_in_fp32_beside_a_matrix_in_bf16_have_gradients_in_fp32(way):
    spans, _ = spans_of_layers(4, [(0, 12)], 12)
    x, weight = torch.randn(9, 16).bfloat16().requires_grad_(), torch.randn(12, 16).bfloat16()
    a, b = torch.randn(4, 16, requires_grad=True), torch.randn(12, 4, requires_grad=True)
    y = kernels.adapted_linear(x, weight, a, b, spans, 0.5, torch.arange(9), torch.tensor(1), 3277)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, a.grad.dtype, b.grad.dtype) == (*[torch.bfloat16] * 2, *[torch.float32] * 2)
    assert min(a.grad.count_nonzero(), b.grad.count_nonzero()) > 0


# Attention

CU_SEQLENS = (0, 1, 20, 37, 64, 64, 64)  # padded with T, documents of length 1 and up
BOUNDS = {"several": CU_SEQLENS, "one": (0, 50), "200": tuple(i * 3 // 2 for i in range(201))}  # of 1 or 2 tokens


def mask_of(cu_seqlens):
    """[T, T]: may token t see token s?"""
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
