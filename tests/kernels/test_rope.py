"""Rotary embedding against transformers' and against complex numbers in fp64."""

import math

import pytest
import torch

import logtrain_kernels as kernels
from logtrain_kernels import Llama3Scaling, rope_tables
from tests.support.precision import DTYPES, assert_right, slack_of

LLAMA31 = Llama3Scaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)  # Llama-3.1-8B
LLAMA32 = Llama3Scaling(
    factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)  # Llama-3.2-1B


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
