"""A linear layer with few outputs, on an input with dropout: the inner half of a low-rank adapter (adapted_linear.py).

    h = s drop(x) A^T        drop(z) = z * mask / kept, as in dropout.py        with dh: s times the gradient of h
    dA = dh^T drop(x)        dx = drop(dh A)

With R = 16 to 64 outputs there are R FLOPs for each byte of x, where a GPU could do 250 in the time that it takes to
read it. So reading is what costs, and a mask that were a tensor would have to be written and read as well. Here one
kernel reads x and gives h; another reads x and gives dA and dx. Both make the mask in registers.

Shapes in names: T tokens, D in features, R outputs (ranks), S parts of the tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from logtrain_kernels.device import CAN_INTERPRET, num_processors, uses_triton
from logtrain_kernels.dropout import kept, kept_reference, kept_scale

INTERPRETED = tl.constexpr(CAN_INTERPRET)
MOST_RANKS = 256  # for the backward's kernel, which takes all at once


def dropped_linear_reference(
    x_TD: Tensor, a_RD: Tensor, keys_T: Tensor | None, salt: Tensor | None, drop: int, scale: float
) -> Tensor:
    if drop:
        x_TD = torch.where(kept_reference(keys_T, salt, drop, x_TD.shape[1]), x_TD, 0)
    return x_TD @ a_RD.T * (scale * kept_scale(drop))


def dropped_linear_backward_reference(
    dh_TR: Tensor, x_TD: Tensor, a_RD: Tensor, keys_T: Tensor | None, salt: Tensor | None, drop: int, for_x: bool
) -> tuple[Tensor, Tensor]:
    dx_TD = dh_TR @ a_RD if for_x else x_TD.new_empty(0)
    if drop:
        kept_TD = kept_reference(keys_T, salt, drop, x_TD.shape[1])
        x_TD = torch.where(kept_TD, x_TD, 0)
        if for_x:
            dx_TD = torch.where(kept_TD, dx_TD.mul_(kept_scale(drop)), 0)
    return dx_TD, dh_TR.T @ x_TD * kept_scale(drop)


# ---- Triton: forward; a program takes 64 tokens through all of D


@triton.jit
def dot(a, b, total):
    if INTERPRETED:  # it would multiply bf16 as the integers that they are stored as
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def within(at, size, ALWAYS: tl.constexpr):
    return tl.full(at.shape, True, tl.int1) if ALWAYS else at < size


@triton.jit(do_not_specialize=["salt", "drop"])
def forward_kernel(
    x_TD, a_RD, keys_T, h_TR, T, R, salt, drop, scale,
    D: tl.constexpr, DROP: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr, RANKS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    rank = tl.program_id(1) * RANKS + tl.arange(0, RANKS)
    row = tl.minimum(token, T - 1).to(tl.int64)  # beyond the last token it is read again, which needs no mask
    x_T, a_R = x_TD + row[:, None] * D, a_RD + tl.minimum(rank, R - 1)[:, None] * D
    if DROP:
        key = tl.load(keys_T + row) + salt
    h = tl.zeros((TOKENS, RANKS), dtype=tl.float32)
    for first in tl.range(0, D, BLOCK, num_stages=STAGES):
        column = first + tl.arange(0, BLOCK)[None, :]
        inside = within(column, D, D % BLOCK == 0)
        x = tl.load(x_T + column, mask=inside, other=0.0)
        if DROP:
            x = tl.where(kept(key, first, drop, BLOCK), x, 0.0)
        h = dot(x, tl.trans(tl.load(a_R + column, mask=inside, other=0.0)), h)
    at = h_TR + token.to(tl.int64)[:, None] * R + rank[None, :]
    tl.store(at, (h * scale).to(h_TR.dtype.element_ty), mask=(token < T)[:, None] & (rank < R)[None, :])


# ---- Triton: backward; a program takes some columns through a part of the tokens, and sums its columns of dA in
# registers: no atomics, and only [S, R, D] of partial sums


@triton.jit(do_not_specialize=["salt", "drop"])
def backward_kernel(
    dh_TR, x_TD, a_RD, keys_T, dx_TD, da_SRD, T, R, salt, drop, scale,
    D: tl.constexpr, DROP: tl.constexpr, FOR_X: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
    RANKS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    first, part = tl.program_id(0) * BLOCK, tl.program_id(1)
    column, rank = first + tl.arange(0, BLOCK), tl.arange(0, RANKS)
    inside = within(column, D, D % BLOCK == 0)
    a = tl.load(a_RD + tl.minimum(rank, R - 1)[:, None] * D + column[None, :], mask=inside[None, :], other=0.0)
    da = tl.zeros((BLOCK, RANKS), dtype=tl.float32)
    tokens = tl.cdiv(tl.cdiv(T, tl.num_programs(1)), TOKENS) * TOKENS
    for start in tl.range(part * tokens, tl.minimum(T, (part + 1) * tokens), TOKENS, num_stages=STAGES):
        token = start + tl.arange(0, TOKENS)
        row = tl.minimum(token, T - 1).to(tl.int64)
        there = (token < T)[:, None] & (rank < R)[None, :]  # so what x has beyond the last token counts 0 times
        dh = tl.load(dh_TR + row[:, None] * R + rank[None, :], mask=there, other=0.0)
        at = row[:, None] * D + column[None, :]
        x = tl.load(x_TD + at, mask=inside[None, :], other=0.0)
        if DROP:
            keep = kept(tl.load(keys_T + row) + salt, first, drop, BLOCK)
            x = tl.where(keep, x, 0.0)
        da = dot(tl.trans(x), dh, da)
        if FOR_X:
            dx = (dot(dh, a, tl.zeros((TOKENS, BLOCK), dtype=tl.float32)) * scale).to(dx_TD.dtype.element_ty)
            if DROP:
                dx = tl.where(keep, dx, 0.0)
            tl.store(dx_TD + at, dx, mask=(token < T)[:, None] & inside[None, :])
    at = da_SRD + part.to(tl.int64) * R * D + rank[None, :] * D + column[:, None]
    tl.store(at, da * scale, mask=(rank < R)[None, :] & inside[:, None])


TOKENS = 64  # the least that the tensor cores of an H100 multiply at once


def forward_launch(R: int, D: int, itemsize: int) -> dict[str, int]:
    """8,192 tokens are 128 programs for 132 processors. Two tiles of x, 32 KiB, are on their way while one is
    multiplied: 3.35 TB/s for the microsecond that a load takes are 25 KB a processor. With R = 48 the loop has 13.0
    instructions an element on sm_90, 5.7 of them for the units of logic. At 2.9 TB/s and 1.7 GHz a processor gets 6.5
    elements a clock, and can issue 128 instructions, 64 of them to these units: they take 66% and 58% of its time.
    """
    return {"TOKENS": TOKENS, "BLOCK": width(D, 256 // itemsize), "RANKS": ranks(R, 64), "STAGES": 3, "num_warps": 8}


def backward_launch(R: int, D: int, itemsize: int) -> dict[str, int]:
    """115 to 147 registers on sm_90 with 16 to 64 ranks, so that 3 or 4 programs share a processor. The mask is made
    twice, in the layouts of x and of dx: 24.6 instructions an element, 14.1 of them logic. But an element is one read
    and one written now, 3.2 a clock: 62% and 71%. More ranks get fewer tokens and more threads, and spill nothing.
    """
    tokens, warps = (TOKENS, 4) if R <= 64 else (32, 8)
    block, most = width(D, 128 // itemsize), ranks(R, MOST_RANKS)
    return {"TOKENS": tokens, "BLOCK": block, "RANKS": most, "STAGES": 3, "num_warps": warps}


def width(D: int, most: int) -> int:
    return min(most, max(16, triton.next_power_of_2(D)))


def ranks(R: int, most: int) -> int:
    return min(most, max(16, triton.next_power_of_2(R)))


def parts(T: int, R: int, programs: int, processors: int) -> int:
    """Into how many the tokens are split, where there are `programs` for the columns. A part writes and reads an fp32
    [R, D], 2 R / T of what x and dx are: a twentieth in all and at most 8 programs a processor, but at least 2.
    """
    wanted = max(2 * processors // programs, min(T // (40 * R), triton.cdiv(8 * processors, programs)))
    return min(max(1, wanted), triton.cdiv(T, TOKENS))


# ---- registered operations, which choose: for a recomputed block each is one product that it keeps, mask and all


@torch.library.custom_op("logtrain::dropped_linear", mutates_args=())
def dropped_linear_op(
    x_TD: Tensor, a_RD: Tensor, keys_T: Tensor | None, salt: Tensor | None, drop: int, scale: float
) -> Tensor:
    """-> h [T, R]"""
    if not uses_triton(x_TD):
        return dropped_linear_reference(x_TD, a_RD, keys_T, salt, drop, scale)
    x_TD, a_RD, (T, D), R = x_TD.contiguous(), a_RD.contiguous(), x_TD.shape, len(a_RD)
    h_TR, launch = x_TD.new_empty(T, R), forward_launch(R, D, x_TD.element_size())
    if T:
        forward_kernel[(triton.cdiv(T, TOKENS), triton.cdiv(R, launch["RANKS"]))](
            x_TD, a_RD, keys_T, h_TR, T, R, int(salt) if drop else 0, drop, scale * kept_scale(drop),
            D=D, DROP=drop > 0, **launch,
        )  # fmt: skip
    return h_TR


@dropped_linear_op.register_fake
def _(x_TD, a_RD, keys_T, salt, drop, scale) -> Tensor:
    return x_TD.new_empty(len(x_TD), len(a_RD))


@torch.library.custom_op("logtrain::dropped_linear_backward", mutates_args=())
def dropped_linear_backward_op(
    dh_TR: Tensor, x_TD: Tensor, a_RD: Tensor, keys_T: Tensor | None, salt: Tensor | None, drop: int, for_x: bool
) -> tuple[Tensor, Tensor]:
    """-> (dx [T, D], or nothing where it is not wanted; dA [R, D])"""
    if not uses_triton(x_TD) or len(a_RD) > MOST_RANKS:
        return dropped_linear_backward_reference(dh_TR, x_TD, a_RD, keys_T, salt, drop, for_x)
    dh_TR, x_TD, a_RD, (T, D), R = dh_TR.contiguous(), x_TD.contiguous(), a_RD.contiguous(), x_TD.shape, len(a_RD)
    launch = backward_launch(R, D, x_TD.element_size())
    programs = triton.cdiv(D, launch["BLOCK"])
    num_parts = parts(T, R, programs, num_processors(x_TD.device)) if T else 0
    dx_TD = torch.empty_like(x_TD) if for_x else x_TD.new_empty(0)
    da_SRD = x_TD.new_empty(num_parts, R, D, dtype=torch.float32)
    if T:
        backward_kernel[(programs, num_parts)](
            dh_TR, x_TD, a_RD, keys_T, dx_TD, da_SRD, T, R, int(salt) if drop else 0, drop, kept_scale(drop),
            D=D, DROP=drop > 0, FOR_X=for_x, **launch,
        )  # fmt: skip
    return dx_TD, da_SRD.sum(0).to(a_RD.dtype)


@dropped_linear_backward_op.register_fake
def _(dh_TR, x_TD, a_RD, keys_T, salt, drop, for_x) -> tuple[Tensor, Tensor]:
    return x_TD.new_empty(x_TD.shape if for_x else 0), a_RD.new_empty(a_RD.shape)


@register_flop_formula(torch.ops.logtrain.dropped_linear)
def dropped_linear_flop(x_shape, a_shape, *_, **__) -> int:
    return 2 * x_shape[0] * x_shape[1] * a_shape[0]


@register_flop_formula(torch.ops.logtrain.dropped_linear_backward)
def dropped_linear_backward_flop(_dh_shape, x_shape, a_shape, _keys, _salt, _drop, for_x, **_) -> int:
    return (1 + for_x) * dropped_linear_flop(x_shape, a_shape)
