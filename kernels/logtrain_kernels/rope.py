"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in the half-split layout of the published Llama weights.

Pair i of a head is (x_i, x_{i + H/2}); at position p it turns by the angle p * f_i, where f_i = theta^(-2i/H). Llama
3.1 lowers the low frequencies (`Llama3Scaling`), so that a model trained on 8,192 positions reaches 131,072.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """`rope_scaling` of type llama3: wavelengths over `original / low` are stretched by `factor`, under `original /
    high` kept, between: mixed.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


def inverse_frequencies(
    head_dim: int, theta: float, scaling: Llama3Scaling | None, device: torch.device | None = None
) -> Tensor:
    """f_i in radians a position, fp32 [H / 2]. Formula of the scaling: the reference code of Llama 3.1 (llama-models,
    `apply_scaling`).
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequency = 1.0 / theta**exponent
    if scaling is None:
        return frequency
    turns = (
        scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    )  # over the positions of the original training
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * (keep + (1 - keep) / scaling.factor)


def rope_tables(
    positions_T: Tensor, head_dim: int, theta: float, scaling: Llama3Scaling | None
) -> tuple[Tensor, Tensor]:
    """(cos, sin) of every token's angles, fp32 [T, H / 2] each: computed once a batch, read by every layer."""
    angles = positions_T[:, None].float() * inverse_frequencies(head_dim, theta, scaling, positions_T.device)
    return angles.cos(), angles.sin()


def rotate(x_TNH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor) -> Tensor:
    first, second = x_TNH.float().chunk(2, dim=-1)
    cos, sin = cos_TH2[:, None], sin_TH2[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_TNH.dtype)


def rope_reference(
    qkv_TNH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor, num_heads: int, num_kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    qk, v_TKH = qkv_TNH.split((num_heads + num_kv_heads, num_kv_heads), dim=1)
    q_TNH, k_TKH = rotate(qk, cos_TH2, sin_TH2).split((num_heads, num_kv_heads), dim=1)
    return q_TNH, k_TKH, v_TKH


def rope(
    qkv_TNH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor, num_heads: int, num_kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate the query and key heads of a fused projection and hand out the three parts.

    qkv [T, N + 2K, H] (heads in the order q, k, v), tables fp32 [T, H / 2] -> q [T, N, H], k [T, K, H], v [T, K, H]
    in qkv's dtype. q, k and v may be views of qkv, and qkv itself must not be used afterwards.
    """
    return rope_reference(qkv_TNH, cos_TH2, sin_TH2, num_heads, num_kv_heads)
