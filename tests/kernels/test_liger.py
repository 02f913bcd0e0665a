"""The shapes and tolerances by which Liger-Kernel tests its own kernels (its test/transformers/test_*.py), for ours.

Expected values come from transformers' Llama modules or plain PyTorch, as there. The interpreter takes milliseconds for
a program, so where a shape has many tokens, fewer are taken: a token's arithmetic does not depend on their number.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

import logtrain_kernels as kernels
from logtrain_kernels import IGNORE, rope_tables
from tests.support.precision import triton_kernels


@pytest.fixture(autouse=True)
def interpreted_kernels():
    torch.manual_seed(42)
    with triton_kernels():
        yield


def tolerances(fp32, bf16):
    values = [(torch.float32, *fp32), (torch.bfloat16, *bf16)]
    return pytest.mark.parametrize(("dtype", "atol", "rtol"), values, ids=["fp32", "bf16"])


def assert_as_close(ours, theirs, inputs, atol, rtol):
    results = []
    for function in (ours, theirs):
        torch.manual_seed(1309)
        leaves = [x.clone().requires_grad_() for x in inputs]
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.backward(outputs, [torch.randn_like(y) if y.ndim else torch.ones_like(y) for y in outputs])
        results.append([*outputs, *(x.grad for x in leaves)])
    for mine, other in zip(*results, strict=True):
        assert other.count_nonzero() > 0
        torch.testing.assert_close(mine, other, atol=atol, rtol=rtol)


def llama_norm(x, weight):
    return torch.func.functional_call(LlamaRMSNorm(x.shape[-1], eps=1e-6), {"weight": weight}, x)


NORM_SHAPES = pytest.mark.parametrize("shape", [(2 * 128, 512), (5 * 123, 123), (2 * 2, 8), (9 * 7, 41)], ids=str)
NORM_TOLERANCES = tolerances(fp32=(1e-4, 1e-6), bf16=(2e-1, 2e-2))
FEWER = 30  # of the 256, 615 and 63 tokens


@NORM_SHAPES
@NORM_TOLERANCES
def test_rms_norm(shape, dtype, atol, rtol):
    inputs = torch.randn(shape)[:FEWER].to(dtype), torch.randn(shape[1]).to(dtype)
    assert_as_close(lambda x, w: kernels.rms_norm(x, w, 1e-6), llama_norm, inputs, atol, rtol)


@NORM_SHAPES
@NORM_TOLERANCES
def test_add_rms_norm(shape, dtype, atol, rtol):
    x, residual = torch.randn(2, *shape)[:, :FEWER].to(dtype)
    assert_as_close(
        lambda x, r, w: kernels.add_rms_norm(x, r, w, 1e-6),
        lambda x, r, w: (r + x, llama_norm(r + x, w)),
        (x, residual, torch.randn(shape[1]).to(dtype)),
        atol,
        rtol,
    )


# Liger's tolerances are for a whole feed-forward of random matrices with outputs in the thousands; here the activation
# alone is held to those it has for it (`silumul_with_multipliers`), and its output is of the order of 1.
@pytest.mark.parametrize(
    ("num_tokens", "size"),
    [(30, 512), (30, 431), (2 * 8, 8), (30, 41)],
    ids=["2x256x512", "6x42x431", "2x8x8", "9x7x41"],
)
@tolerances(fp32=(1e-3, 1e-5), bf16=(1e-1, 1e-2))
def test_swiglu(num_tokens, size, dtype, atol, rtol):
    def llama(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    assert_as_close(kernels.swiglu, llama, [torch.randn(num_tokens, 2 * size).to(dtype)], atol, rtol)


@pytest.mark.parametrize(
    ("positions", "num_heads", "num_kv_heads", "head_dim"),
    [  # the last two of Liger's positions
        (range(126, 128), 32, 32, 64),
        (range(126, 128), 32, 8, 64),
        (range(421, 423), 73, 213, 92),
        (range(421, 423), 73, 155, 92),
        (range(8190, 8192), 32, 8, 128),
        (range(2), 2, 2, 8),
        (range(2), 1, 2, 8),
        (range(5, 7), 41, 41, 42),  # Liger's 41: a head that has no halves
    ],
    ids=str,
)
@tolerances(fp32=(1e-5, 1e-5), bf16=(1e-1, 1e-5))
def test_rope(positions, num_heads, num_kv_heads, head_dim, dtype, atol, rtol):
    tables = rope_tables(torch.tensor(positions), head_dim, 10_000.0, None)

    def llama(qkv):
        q, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
        cos, sin = (torch.cat((table, table), dim=-1)[None].to(dtype) for table in tables)
        q, k = apply_rotary_pos_emb(q[None], k[None], cos, sin, unsqueeze_dim=2)
        return q[0], k[0], v

    inputs = [torch.randn(len(positions), num_heads + 2 * num_kv_heads, head_dim).to(dtype)]
    assert_as_close(lambda qkv: kernels.rope(qkv, *tables, num_heads, num_kv_heads), llama, inputs, atol, rtol)


# The mean's tolerances. The sum's are no stricter, and for bf16 they hold for anything: 50 times the value.
@pytest.mark.parametrize(
    ("num_tokens", "width", "vocab"), [(64, 1024, 4096), (64, 31, 123)], ids=["8x128x1024x4096", "4x47x31x123"]
)
@tolerances(fp32=(1e-5, 5e-4), bf16=(5e-3, 5e-2))
def test_mean_of_the_losses(num_tokens, width, vocab, dtype, atol, rtol):
    labels = torch.randint(vocab, (num_tokens,))
    labels[torch.randperm(num_tokens)[: num_tokens // 4]] = IGNORE
    assert_as_close(
        lambda x, w: kernels.linear_cross_entropy(x, w, labels) / (labels != IGNORE).sum(),
        lambda x, w: F.cross_entropy((x @ w.T).float(), labels, ignore_index=IGNORE),
        (torch.randn(num_tokens, width).to(dtype), torch.rand(vocab, width).to(dtype)),
        atol,
        rtol,
    )
