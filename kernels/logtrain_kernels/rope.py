"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in the half-split layout of the published Llama weights.

Pair i of a head is (x_i, x_{i + H/2}); at position p it turns by the angle p * f_i, where f_i = theta^(-2i/H). Llama
3.1 lowers the low frequencies (`Llama3Scaling`), so that a model trained on 8,192 positions reaches 131,072.

Shapes in names: T tokens, N query heads, K key-value heads, H head size, H2 half of it. Heads are bf16 or
fp32, cosines and sines fp32.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from logtrain_kernels.cost import Cost, nbytes
from logtrain_kernels.device import is_plain, uses_triton
from logtrain_kernels.language import constexpr


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """The `rope_scaling` of type llama3: wavelengths over `original / low` are stretched by `factor`, those under
    `original / high` are kept, those between are a mixture.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


def inverse_frequencies(
    head_dim: int, theta: float, scaling: Llama3Scaling | None, device: torch.device | None = None
) -> Tensor:
    """f_i in radians a position, fp32 [H / 2]. The scaling's formula is that of Llama 3.1's reference code
    (llama-models, `apply_scaling`).
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequency = 1.0 / theta**exponent
    if scaling is None:
        return frequency
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)  # in the original training's length
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * (keep + (1 - keep) / scaling.factor)


def rope_tables(
    positions_T: Tensor, head_dim: int, theta: float, scaling: Llama3Scaling | None
) -> tuple[Tensor, Tensor]:
    """(cos, sin) of every token's angles, fp32 [T, H / 2] each, for integer positions [T]. They are computed once a
    batch and read by every layer.
    """
    angles = positions_T[:, None].float() * inverse_frequencies(head_dim, theta, scaling, positions_T.device)
    return angles.cos(), angles.sin()


def rotate(x_TNH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor) -> Tensor:
    """Each pair of each head turned by its token's angle, in x's dtype."""
    first, second = x_TNH.float().chunk(2, dim=-1)
    cos, sin = cos_TH2[:, None], sin_TH2[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_TNH.dtype)


def rope_reference(
    qkv_TNH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor, num_heads: int, num_kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`rope` in plain PyTorch."""
    qk, v_TKH = qkv_TNH.split((num_heads + num_kv_heads, num_kv_heads), dim=1)
    q_TNH, k_TKH = rotate(qk, cos_TH2, sin_TH2).split((num_heads, num_kv_heads), dim=1)
    return q_TNH, k_TKH, v_TKH


# ---- elsewhere than on a GPU: what the kernels do, pass by pass


def turn(x_TNH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor) -> None:
    """Turns each pair of each head by its token's angle, in place."""
    first, second = x_TNH.unflatten(-1, (2, -1)).unbind(-2)
    first32, second32, cos, sin = first.float(), second.float(), cos_TH2.unsqueeze(1), sin_TH2.unsqueeze(1)
    turned = (first32 * cos).addcmul_(second32, sin, value=-1)
    second.copy_((second32 * cos).addcmul_(first32, sin))
    first.copy_(turned)


# ---- Triton: a program takes a token, so that its angles are read once for all heads


@triton.jit
def turned_pairs(x_NH, at, inside, cos, sin, HALF: constexpr, TURN: constexpr):
    """-> both halves of heads, turned or as they are, in x's dtype"""
    a = tl.load(x_NH + at, mask=inside, other=0.0)
    b = tl.load(x_NH + at + HALF, mask=inside, other=0.0)
    if TURN:
        a, b = a.to(tl.float32), b.to(tl.float32)
        a, b = a * cos - b * sin, b * cos + a * sin
    dtype = x_NH.dtype.element_ty
    return a.to(dtype), b.to(dtype)


@triton.jit
def move_heads(
    from_NH, to_NH, cos, sin, NUM: constexpr, HALF: constexpr, TURN: constexpr, HEADS: constexpr, PAIRS: constexpr
):  # fmt: skip
    """Copies NUM heads of one token, HEADS at a time, turned or as they are; `to_NH` may be `from_NH`."""
    pair = tl.arange(0, PAIRS)[None, :]
    for first in tl.static_range(0, NUM, HEADS):  # pyright: ignore[reportGeneralTypeIssues]
        head = first + tl.arange(0, HEADS)[:, None]
        inside = (head < NUM) & (pair < HALF)
        at = head * 2 * HALF + pair
        a, b = turned_pairs(from_NH, at, inside, cos, sin, HALF, TURN)
        tl.store(to_NH + at, a, mask=inside)
        tl.store(to_NH + at + HALF, b, mask=inside)


@triton.jit
def rope_forward(
    qkv_TNH, cos_TH2, sin_TH2, N: constexpr, K: constexpr, HALF: constexpr, HEADS: constexpr, PAIRS: constexpr
):
    """Turns the query and key heads of one token, in place."""
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, PAIRS)[None, :]
    cos = tl.load(cos_TH2 + token * HALF + pair, mask=pair < HALF, other=0.0)
    sin = tl.load(sin_TH2 + token * HALF + pair, mask=pair < HALF, other=0.0)
    qkv_NH = qkv_TNH + token * (N + 2 * K) * 2 * HALF
    move_heads(qkv_NH, qkv_NH, cos, sin, N + K, HALF, True, HEADS, PAIRS)


@triton.jit
def rope_backward(
    dq_TNH, dk_TKH, dv_TKH, cos_TH2, sin_TH2, dqkv_TNH,
    N: constexpr, K: constexpr, HALF: constexpr, HEADS: constexpr, PAIRS: constexpr,
):  # fmt: skip
    """Turns the gradients of one token back, and joins the three into the one that the projection's matrix products
    read.
    """
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, PAIRS)[None, :]
    cos = tl.load(cos_TH2 + token * HALF + pair, mask=pair < HALF, other=0.0)
    sin = -tl.load(sin_TH2 + token * HALF + pair, mask=pair < HALF, other=0.0)
    q, k, v = dqkv_TNH + token * (N + 2 * K) * 2 * HALF, N * 2 * HALF, (N + K) * 2 * HALF
    move_heads(dq_TNH + token * N * 2 * HALF, q, cos, sin, N, HALF, True, HEADS, PAIRS)
    move_heads(dk_TKH + token * K * 2 * HALF, q + k, cos, sin, K, HALF, True, HEADS, PAIRS)
    move_heads(dv_TKH + token * K * 2 * HALF, q + v, cos, sin, K, HALF, False, HEADS, PAIRS)


def rope_launch(half: int) -> dict[str, int]:
    """Launch parameters of both kernels: 8 heads at a time (they divide every Llama's) and 8 pairs a thread make
    16-byte accesses to bf16. With H = 128 a program has two warps of 32 registers on sm_90 (40 in the backward), so
    that 64 (48) of 64 warps are resident.
    """
    pairs = triton.next_power_of_2(half)
    return {"HEADS": 8, "PAIRS": pairs, "num_warps": min(max(pairs // 32, 1), 8)}


# ---- registered operations


@torch.library.custom_op("logtrain::rope_", mutates_args={"qkv_TNH"})
def rope_op(qkv_TNH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor, num_heads: int, num_kv_heads: int) -> None:
    """Turn the query and key heads in place."""
    assert qkv_TNH.is_contiguous(), "in place, so it cannot make a copy"
    if not uses_triton(qkv_TNH):
        turn(qkv_TNH[:, : num_heads + num_kv_heads], cos_TH2, sin_TH2)
    elif len(qkv_TNH):
        half = cos_TH2.shape[1]
        tables, launch = (cos_TH2.contiguous(), sin_TH2.contiguous()), rope_launch(half)
        rope_forward[(len(qkv_TNH),)](qkv_TNH, *tables, N=num_heads, K=num_kv_heads, HALF=half, **launch)


@rope_op.register_fake
def _(qkv_TNH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor, num_heads: int, num_kv_heads: int) -> None:
    pass


@torch.library.custom_op("logtrain::rope_backward", mutates_args=())
def rope_backward_op(dq_TNH: Tensor, dk_TKH: Tensor, dv_TKH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor) -> Tensor:
    """-> dqkv [T, N + 2K, H]"""
    (T, N, H), K = dq_TNH.shape, dk_TKH.shape[1]
    dqkv_TNH = dq_TNH.new_empty(T, N + 2 * K, H)
    if not uses_triton(dq_TNH):
        torch.cat((dq_TNH, dk_TKH, dv_TKH), dim=1, out=dqkv_TNH)
        turn(dqkv_TNH[:, : N + K], cos_TH2, -sin_TH2)
    elif T:
        gradients = dq_TNH.contiguous(), dk_TKH.contiguous(), dv_TKH.contiguous()
        tables, launch = (cos_TH2.contiguous(), sin_TH2.contiguous()), rope_launch(H // 2)
        rope_backward[(T,)](*gradients, *tables, dqkv_TNH, N=N, K=K, HALF=H // 2, **launch)
    return dqkv_TNH


@rope_backward_op.register_fake
def _(dq_TNH: Tensor, dk_TKH: Tensor, dv_TKH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor) -> Tensor:
    T, N, H = dq_TNH.shape
    return dq_TNH.new_empty(T, N + 2 * dk_TKH.shape[1], H)


class Rope(torch.autograd.Function):
    """`rope` by its operation, which autograd's registration does not take because it works in place."""

    @staticmethod
    def forward(ctx, qkv_TNH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor, num_heads: int, num_kv_heads: int):
        ctx.save_for_backward(cos_TH2, sin_TH2)
        qkv_TNH = qkv_TNH.detach().contiguous()
        rope_op(qkv_TNH, cos_TH2, sin_TH2, num_heads, num_kv_heads)
        return qkv_TNH.split((num_heads, num_kv_heads, num_kv_heads), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dq_TNH: Tensor, dk_TKH: Tensor, dv_TKH: Tensor):
        return rope_backward_op(dq_TNH, dk_TKH, dv_TKH, *ctx.saved_tensors), None, None, None, None


# ---- what the operations cost, and which of them selective recomputation keeps

# It works in place of the projection's product, which is kept: a second time would turn that twice.
ROPE_KEPT = ("logtrain.rope_.default",)


def rope_cost(qkv_TNH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor, num_heads: int, num_kv_heads: int) -> Cost:
    """The cost of `rope_op`: values stay as they are."""
    turned = nbytes(qkv_TNH) * (num_heads + num_kv_heads) // qkv_TNH.shape[1]
    return Cost(read=turned + nbytes(cos_TH2, sin_TH2), written=turned)


def rope_backward_cost(dq_TNH: Tensor, dk_TKH: Tensor, dv_TKH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor) -> Cost:
    """The cost of `rope_backward_op`."""
    return Cost(read=nbytes(dq_TNH, dk_TKH, dv_TKH, cos_TH2, sin_TH2), written=nbytes(dq_TNH, dk_TKH, dv_TKH))


# ---- what the model calls


def rope(
    qkv_TNH: Tensor, cos_TH2: Tensor, sin_TH2: Tensor, num_heads: int, num_kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate the query and key heads of a fused projection and hand out the three parts.

    qkv [T, N + 2K, H] (heads in the order q, k, v), tables fp32 [T, H / 2] -> q [T, N, H], k [T, K, H], v [T, K, H]
    in qkv's dtype. q, k and v are views of qkv, turned in place: qkv itself must not be used afterwards.
    """
    if is_plain(qkv_TNH):
        turn(qkv_TNH[:, : num_heads + num_kv_heads], cos_TH2, sin_TH2)
        q_TNH, k_TKH, v_TKH = qkv_TNH.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
        return q_TNH, k_TKH, v_TKH
    return Rope.apply(qkv_TNH, cos_TH2, sin_TH2, num_heads, num_kv_heads)
