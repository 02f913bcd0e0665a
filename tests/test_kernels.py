"""The operations against PyTorch's own and against fp64.

An operation is right when, in the output and in every gradient, its error against fp64 is at most twice PyTorch's own
in the same dtype (and a few roundings of fp32, where PyTorch's happens to be none).
"""

import math
import sys
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import logtrain_kernels as kernels
from logtrain_kernels import IGNORE, Llama3Scaling, linear_cross_entropy, rope_tables

# The module; the package gives the function of the same name.
LCE = sys.modules["logtrain_kernels.linear_cross_entropy"]

FEW_ROUNDINGS = 4 * torch.finfo(torch.float32).eps
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
LLAMA31 = Llama3Scaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)  # Llama-3.1-8B
LLAMA32 = Llama3Scaling(
    factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)  # Llama-3.2-1B


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1309)


def values_and_gradients(function, inputs, dtype):
    """Outputs, then the gradient of each input, for one fixed random gradient of the outputs."""
    leaves = [x.detach().clone().to(dtype).requires_grad_() for x in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(y.shape, generator=generator).bfloat16().to(y.dtype) for y in outputs]  # exact in all
    torch.autograd.backward(outputs, weights)
    assert all(y.dtype in (dtype, torch.float32) for y in outputs)
    return [*(y.detach() for y in outputs), *(x.grad for x in leaves)]


def assert_right(ours, pytorch, exact, inputs, dtype, slack=FEW_ROUNDINGS):
    inputs = [x.to(dtype) for x in inputs]  # all three see the same rounded numbers
    results = [
        values_and_gradients(*call)
        for call in ((ours, inputs, dtype), (pytorch, inputs, dtype), (exact, inputs, torch.float64))
    ]
    for i, (mine, theirs, truth) in enumerate(zip(*results, strict=True)):
        assert mine.shape == truth.shape
        allowed = 2 * (theirs.double() - truth).abs().max() + slack * truth.abs().max()
        error = (mine.double() - truth).abs().max()
        assert error <= allowed, f"result {i}: error {error:.2e}, allowed {allowed:.2e}"


# RMSNorm


def rms_norm_exact(x, weight, eps=1e-5):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


@DTYPES
@pytest.mark.parametrize("shape", [(1, 64), (37, 96), (5, 4097)], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_rms_norm(shape, scale, dtype):
    x, weight = torch.randn(shape) * scale, torch.rand(shape[-1]) + 0.5
    norm = torch.nn.RMSNorm(shape[-1], eps=1e-5)
    assert_right(
        lambda x, w: kernels.rms_norm(x, w, 1e-5),
        lambda x, w: torch.func.functional_call(norm, {"weight": w}, x),
        rms_norm_exact,
        [x, weight],
        dtype,
    )


@DTYPES
def test_add_rms_norm_adds_first_and_normalises_the_sum(dtype):
    x, residual, weight = torch.randn(37, 96), torch.randn(37, 96) * 5, torch.rand(96) + 0.5
    assert_right(
        lambda x, r, w: kernels.add_rms_norm(x, r, w, 1e-5),
        lambda x, r, w: (r + x, F.rms_norm(r + x, (96,), w, 1e-5)),
        lambda x, r, w: (r + x, rms_norm_exact(r + x, w)),
        [x, residual, weight],
        dtype,
    )


def test_the_residual_stream_starts_with_the_first_input():
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
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(8, 8), (8, 2), (3, 1)])
def test_rope_turns_each_pair_as_a_complex_number(num_heads, num_kv_heads, dtype):
    head_dim, theta = 16, 10_000.0
    positions = torch.tensor([*range(20), *range(7), 300, 511])
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
        [torch.randn(len(positions), num_heads + 2 * num_kv_heads, head_dim)],
        dtype,
    )


# SwiGLU


@DTYPES
def test_swiglu(dtype):
    gate_up = torch.cat((torch.randn(37, 90) * 4, torch.randn(37, 90)), dim=1)
    gate_up[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -20.0])  # e^200 overflows fp32

    def pytorch(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def exact(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return gate * torch.sigmoid(gate) * up

    assert_right(kernels.swiglu, pytorch, exact, [gate_up], dtype)


# Attention

CU_SEQLENS = (0, 1, 20, 37, 64, 64, 64)  # padded with T, documents of length 1 and up


def mask_of(cu_seqlens):
    """[T, T]: may token t see token s?"""
    document = torch.cat([torch.full((stop - start,), i) for i, (start, stop) in enumerate(pairwise(cu_seqlens))])
    return (document[:, None] == document) & torch.ones(len(document), len(document), dtype=torch.bool).tril()


def attention_ops():
    cu_seqlens = torch.tensor(CU_SEQLENS, dtype=torch.int32)
    yield "public", lambda q, k, v: kernels.attention(q, k, v, cu_seqlens, 40)  # 40: more than the longest
    yield "reference", lambda q, k, v: kernels.attention_reference(q, k, v, cu_seqlens)


@DTYPES
@pytest.mark.parametrize("num_kv_heads", [1, 4, 8])
@pytest.mark.parametrize("attention", [op for _, op in attention_ops()], ids=[name for name, _ in attention_ops()])
def test_attention(attention, num_kv_heads, dtype):
    num_heads, head_dim, mask = 8, 16, mask_of(CU_SEQLENS)

    def repeated(x):
        return x.repeat_interleave(num_heads // num_kv_heads, dim=1).transpose(0, 1)

    def pytorch(q, k, v):
        out = F.scaled_dot_product_attention(q.transpose(0, 1), repeated(k), repeated(v), attn_mask=mask)
        return out.transpose(0, 1)

    def exact(q, k, v):
        scores = torch.einsum("tnh,nsh->nts", q, repeated(k)) / math.sqrt(head_dim)
        return torch.einsum("nts,nsh->tnh", scores.masked_fill(~mask, -math.inf).softmax(-1), repeated(v))

    shapes = [(64, heads, head_dim) for heads in (num_heads, num_kv_heads, num_kv_heads)]
    # PyTorch beside PyTorch: its two ways differ by a rounding or two of their own.
    inputs = [torch.randn(shape) * 2 for shape in shapes]
    assert_right(attention, pytorch, exact, inputs, dtype, slack=4 * torch.finfo(dtype).eps)


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


# Cross-entropy with the head

TOKENS, WIDTH, VOCAB = 50, 24, 131


def loss_inputs(scale=1.0):
    """x, head and labels with every fourth label ignored, the first and the last among them."""
    labels = torch.randint(VOCAB, (TOKENS,))
    labels[::4] = IGNORE
    labels[-1] = IGNORE
    labels[1], labels[2] = 0, VOCAB - 1
    return torch.randn(TOKENS, WIDTH) * scale, torch.randn(VOCAB, WIDTH), labels


def loss_by(function, labels):
    """The loss times 0.37: the gradient that arrives is not 1."""
    return lambda x, weight: 0.37 * function(x, weight, labels)


def whole_logits(x, weight, labels):
    return F.cross_entropy((x @ weight.T).float(), labels, ignore_index=IGNORE, reduction="sum")


def from_the_definition(x, weight, labels):
    targets = labels != IGNORE
    log_p = torch.log_softmax(x[targets] @ weight.T, dim=-1)
    return -log_p.gather(1, labels[targets][:, None]).sum()


@pytest.fixture
def chunk(monkeypatch):
    """chunk(tokens): so many tokens' logits at once."""
    return lambda tokens: monkeypatch.setattr(LCE, "CHUNK_LOGITS", tokens * VOCAB)


@DTYPES
@pytest.mark.parametrize("chunk_tokens", [1, 7, 25, 49, 50, 1000])
def test_loss_is_cross_entropy_of_whole_logits_at_any_chunk_size(chunk_tokens, dtype, chunk):
    chunk(chunk_tokens)
    *inputs, labels = loss_inputs()
    ours, pytorch, exact = (
        loss_by(function, labels) for function in (linear_cross_entropy, whole_logits, from_the_definition)
    )
    assert_right(ours, pytorch, exact, inputs, dtype)


@DTYPES
def test_the_reference_of_the_loss(dtype):
    *inputs, labels = loss_inputs()
    functions = (kernels.linear_cross_entropy_reference, whole_logits, from_the_definition)
    assert_right(*(loss_by(function, labels) for function in functions), inputs, dtype)


def test_the_heads_gradient_is_summed_over_chunks_in_fp32(chunk):
    chunk(1)
    inputs, labels = [torch.randn(400, WIDTH), torch.randn(VOCAB, WIDTH)], torch.randint(3, (400,))
    functions = (linear_cross_entropy, whole_logits, from_the_definition)
    assert_right(*(loss_by(function, labels) for function in functions), inputs, torch.bfloat16)


def test_a_chunk_smaller_than_one_row_of_logits_is_one_token(monkeypatch):
    monkeypatch.setattr(LCE, "CHUNK_LOGITS", VOCAB // 2)
    x, weight, labels = loss_inputs()
    torch.testing.assert_close(linear_cross_entropy(x, weight, labels), whole_logits(x, weight, labels))


def test_loss_of_large_logits_is_finite_and_right(chunk):
    chunk(7)
    x, weight, labels = loss_inputs(scale=100.0)
    assert (x @ weight.T).abs().max() > 1000  # e^89 overflows fp32
    ours, exact = (
        values_and_gradients(loss_by(function, labels), [x, weight], dtype)
        for function, dtype in ((linear_cross_entropy, torch.float32), (from_the_definition, torch.float64))
    )
    for mine, truth in zip(ours, exact, strict=True):  # logits of 1,000 are rounded to 6e-5
        assert (mine - truth).abs().max() <= 3e-4 * truth.abs().max()


@pytest.mark.parametrize("function", [linear_cross_entropy, kernels.linear_cross_entropy_reference])
@pytest.mark.parametrize("num_tokens", [TOKENS, 0])
def test_without_targets_loss_and_gradients_are_exactly_zero(function, num_tokens, chunk):
    chunk(7)
    x, weight, _ = loss_inputs()
    x = x[:num_tokens].requires_grad_()
    loss = function(x, weight.requires_grad_(), torch.full((num_tokens,), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert torch.count_nonzero(x.grad) == 0
    assert torch.count_nonzero(weight.grad) == 0


def test_an_ignored_token_moves_nothing(chunk):
    chunk(7)
    x, weight, labels = loss_inputs()
    ignored = labels == IGNORE
    x.requires_grad_()
    loss = linear_cross_entropy(x, weight, labels)
    loss.backward()
    assert torch.count_nonzero(x.grad[ignored]) == 0
    assert (x.grad[~ignored].abs().amax(-1) > 0).all()
    moved = x.detach() + ignored[:, None] * 3
    assert linear_cross_entropy(moved, weight, labels).item() == loss.item()


class Allocations(TorchDispatchMode):
    """Shapes of the tensors that operations give, outputs that view or change an input included."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.shapes += [
            tuple(y.shape) for y in (out if isinstance(out, tuple | list) else (out,)) if torch.is_tensor(y)
        ]
        return out


def test_logits_exist_for_one_chunk_at_a_time(chunk):
    chunk(7)
    x, weight, labels = loss_inputs()
    with Allocations() as seen:
        linear_cross_entropy(x.requires_grad_(), weight.requires_grad_(), labels).backward()
    logits = [shape for shape in seen.shapes if VOCAB in shape and WIDTH not in shape]
    assert logits
    assert max(math.prod(shape) for shape in logits) == 7 * VOCAB


@pytest.mark.parametrize("wanted", ["no_grad", "frozen", "both"])
def test_gradients_are_computed_only_where_they_are_wanted(wanted, chunk):
    chunk(7)
    x, weight, labels = loss_inputs()
    trained = wanted != "frozen"
    x.requires_grad_(trained), weight.requires_grad_(trained)
    with torch.set_grad_enabled(wanted != "no_grad"), Allocations() as seen:
        loss = linear_cross_entropy(x, weight, labels)
    buffers = [shape for shape in seen.shapes if shape in ((TOKENS, WIDTH), (VOCAB, WIDTH))]
    assert bool(buffers) == loss.requires_grad == (wanted == "both")
    torch.testing.assert_close(loss, whole_logits(x, weight, labels))


def test_a_second_derivative_is_refused_rather_than_wrong():
    x, weight, labels = loss_inputs()
    loss = linear_cross_entropy(x.requires_grad_(), weight, labels)
    (gradient,) = torch.autograd.grad(loss.square(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
