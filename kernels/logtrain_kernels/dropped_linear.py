"""A linear layer with few outputs, on an input with dropout: the inner half of a low-rank adapter (adapted_linear.py).

    h = s drop(x) A^T        drop(z) = z * mask / kept, as in dropout.py        with dh: s times the gradient of h
    dA = dh^T drop(x)        dx = drop(dh A)

With R = 16 to 64 outputs there are R FLOPs for each byte of x, where a GPU could do 250 in the time that it takes to
read it. So reading is what costs, and a mask that were a tensor would have to be written and read as well. Here one
kernel reads x and gives h; another reads x and gives dA and dx. Both make the mask in registers.

Shapes in names: T tokens, D in features, R outputs (ranks), S parts of the tokens. x, A and h are of one
dtype, bf16 or fp32; seeds are int64; `salt` is an int64 scalar on the host.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logtrain_kernels.cost import Cost, count_flops, nbytes
from logtrain_kernels.device import CAN_INTERPRET, num_processors, uses_triton
from logtrain_kernels.dropout import kept, kept_reference, kept_scale
from logtrain_kernels.language import constexpr

INTERPRETED = tl.constexpr(CAN_INTERPRET)
MOST_RANKS = 256  # for the backward's kernel, which takes all at once


def dropped_linear_reference(
    x_TD: Tensor, a_RD: Tensor, seeds_T: Tensor | None, salt: Tensor | None, drop: int, scale: float
) -> Tensor:
    """`dropped_linear_op` in plain PyTorch."""
    if drop:
        assert seeds_T is not None and salt is not None, "nothing to draw dropout from"
        x_TD = torch.where(kept_reference(seeds_T, salt, drop, x_TD.shape[1]), x_TD, 0)
    return x_TD @ a_RD.T * (scale * kept_scale(drop))


def dropped_linear_backward_reference(
    dh_TR: Tensor, x_TD: Tensor, a_RD: Tensor, seeds_T: Tensor | None, salt: Tensor | None, drop: int, for_x: bool
) -> tuple[Tensor, Tensor]:
    """`dropped_linear_backward_op` in plain PyTorch."""
    dx_TD = dh_TR @ a_RD if for_x else x_TD.new_empty(0)
    if drop:
        assert seeds_T is not None and salt is not None, "nothing to draw dropout from"
        kept_TD = kept_reference(seeds_T, salt, drop, x_TD.shape[1])
        x_TD = torch.where(kept_TD, x_TD, 0)
        if for_x:
            dx_TD = torch.where(kept_TD, dx_TD.mul_(kept_scale(drop)), 0)
    return dx_TD, dh_TR.T @ x_TD * kept_scale(drop)


# ---- Triton, forward: a program takes 64 tokens through all of D


@triton.jit
def dot(a, b, total):
    """total + a b, in fp32."""
    if INTERPRETED:  # it would multiply bf16 as the integers that they are stored as
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def within(at, size, ALWAYS: constexpr):
    """Which of the indices `at` are below `size`; if ALWAYS, all of them, which the compiler then knows."""
    return tl.full(at.shape, True, tl.int1) if ALWAYS else at < size


@triton.jit(do_not_specialize=["salt", "drop"])
def dropped_linear_forward(
    x_TD, a_RD, seeds_T, h_TR, T, R, salt, drop, scale,
    D: constexpr, DROP: constexpr, TOKENS: constexpr, BLOCK: constexpr, RANKS: constexpr, STAGES: constexpr,
):  # fmt: skip
    """Gives h of TOKENS tokens and RANKS ranks."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    rank = tl.program_id(1) * RANKS + tl.arange(0, RANKS)
    row = tl.minimum(token, T - 1).to(tl.int64)  # beyond the last token it is read again, which needs no mask
    x_T, a_R = x_TD + row[:, None] * D, a_RD + tl.minimum(rank, R - 1)[:, None] * D
    if DROP:
        salted = tl.load(seeds_T + row) + salt
    h = tl.zeros((TOKENS, RANKS), dtype=tl.float32)
    for first in tl.range(0, D, BLOCK, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        column = first + tl.arange(0, BLOCK)[None, :]
        inside = within(column, D, D % BLOCK == 0)
        x = tl.load(x_T + column, mask=inside, other=0.0)
        if DROP:
            x = tl.where(kept(salted, first, drop, BLOCK), x, 0.0)
        h = dot(x, tl.trans(tl.load(a_R + column, mask=inside, other=0.0)), h)
    at = h_TR + token.to(tl.int64)[:, None] * R + rank[None, :]
    tl.store(at, (h * scale).to(h_TR.dtype.element_ty), mask=(token < T)[:, None] & (rank < R)[None, :])


# ---- Triton, backward: a program takes some columns through a part of the tokens, and sums its columns of dA in
# registers: no atomics, and only [S, R, D] of partial sums


@triton.jit(do_not_specialize=["salt", "drop"])
def dropped_linear_backward(
    dh_TR, x_TD, a_RD, seeds_T, dx_TD, da_SRD, T, R, salt, drop, scale,
    D: constexpr, DROP: constexpr, FOR_X: constexpr, TOKENS: constexpr, BLOCK: constexpr, RANKS: constexpr,
    STAGES: constexpr,
):  # fmt: skip
    """Gives BLOCK columns of dx and of one part's dA."""
    first, part = tl.program_id(0) * BLOCK, tl.program_id(1)
    column, rank = first + tl.arange(0, BLOCK), tl.arange(0, RANKS)
    inside = within(column, D, D % BLOCK == 0)
    a = tl.load(a_RD + tl.minimum(rank, R - 1)[:, None] * D + column[None, :], mask=inside[None, :], other=0.0)
    da = tl.zeros((BLOCK, RANKS), dtype=tl.float32)
    tokens = tl.cdiv(tl.cdiv(T, tl.num_programs(1)), TOKENS) * TOKENS
    stop = tl.minimum(T, (part + 1) * tokens)
    for start in tl.range(part * tokens, stop, TOKENS, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        token = start + tl.arange(0, TOKENS)
        row = tl.minimum(token, T - 1).to(tl.int64)
        there = (token < T)[:, None] & (rank < R)[None, :]  # so what x has beyond the last token counts 0 times
        dh = tl.load(dh_TR + row[:, None] * R + rank[None, :], mask=there, other=0.0)
        at = row[:, None] * D + column[None, :]
        x = tl.load(x_TD + at, mask=inside[None, :], other=0.0)
        if DROP:
            keep = kept(tl.load(seeds_T + row) + salt, first, drop, BLOCK)
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


def dropped_linear_forward_launch(R: int, D: int, itemsize: int) -> dict[str, int]:
    """Launch parameters of the forward. 8,192 tokens are 128 programs for 132 processors. Two tiles of x, 32 KiB, are
    on their way while one is multiplied: 3.35 TB/s for the microsecond that a load takes are 25 KB a processor.

    With R = 48 the loop has 13.0 instructions an element on sm_90, 5.7 of them for the units of logic. At 2.9 TB/s and
    1.7 GHz a processor gets 6.5 elements a clock, and can issue 128 instructions, 64 of them to these units: they take
    66% and 58% of its time.
    """
    return {
        "TOKENS": TOKENS,
        "BLOCK": tile_side(D, 256 // itemsize),
        "RANKS": tile_side(R, 64),
        "STAGES": 3,
        "num_warps": 8,
    }


def dropped_linear_backward_launch(R: int, D: int, itemsize: int) -> dict[str, int]:
    """Launch parameters of the backward, which takes 115 to 147 registers on sm_90 with 16 to 64 ranks, so that 3 or 4
    programs share a processor.

    The mask is made twice, in the layouts of x and of dx: 24.6 instructions an element, 14.1 of them logic. But an
    element is one read and one written now, 3.2 a clock: 62% and 71% of a processor's time. More ranks get fewer tokens
    and more threads, and spill nothing.
    """
    tokens, warps = (TOKENS, 4) if R <= 64 else (32, 8)
    block, ranks = tile_side(D, 128 // itemsize), tile_side(R, MOST_RANKS)
    return {"TOKENS": tokens, "BLOCK": block, "RANKS": ranks, "STAGES": 3, "num_warps": warps}


def tile_side(size: int, most: int) -> int:
    """A side of a tile that covers `size` as far as `most` allows: a power of two, at least the 16 that tensor cores
    multiply at once.
    """
    return min(most, max(16, triton.next_power_of_2(size)))


def num_parts(T: int, R: int, programs: int, processors: int) -> int:
    """How many parts the tokens are split into in the backward, where there are `programs` for the columns. A part
    writes and reads an fp32 [R, D], 2 R / T of what x and dx are: a twentieth in all and at most 8 programs a
    processor, but at least 2.
    """
    wanted = max(2 * processors // programs, min(T // (40 * R), triton.cdiv(8 * processors, programs)))
    return min(max(1, wanted), triton.cdiv(T, TOKENS))


def backward_grid(x_TD: Tensor, R: int) -> tuple[int, int]:
    """The backward's programs: (for the columns, for the parts of the tokens)."""
    T, D = x_TD.shape
    programs = triton.cdiv(D, dropped_linear_backward_launch(R, D, x_TD.element_size())["BLOCK"])
    return programs, num_parts(T, R, programs, num_processors(x_TD.device)) if T else 0


# ---- registered operations. Each chooses between kernel and reference itself: so a recomputed block keeps it as one
# product, mask and all


@torch.library.custom_op("logtrain::dropped_linear", mutates_args=())
def dropped_linear_op(
    x_TD: Tensor, a_RD: Tensor, seeds_T: Tensor | None, salt: Tensor | None, drop: int, scale: float
) -> Tensor:
    """-> h [T, R]"""
    if not uses_triton(x_TD):
        return dropped_linear_reference(x_TD, a_RD, seeds_T, salt, drop, scale)
    x_TD, a_RD, (T, D), R = x_TD.contiguous(), a_RD.contiguous(), x_TD.shape, len(a_RD)
    h_TR, launch = x_TD.new_empty(T, R), dropped_linear_forward_launch(R, D, x_TD.element_size())
    if T:
        dropped_linear_forward[(triton.cdiv(T, TOKENS), triton.cdiv(R, launch["RANKS"]))](
            x_TD, a_RD, seeds_T, h_TR, T, R, salt_number(salt, drop), drop, scale * kept_scale(drop),
            D=D, DROP=drop > 0, **launch,
        )  # fmt: skip
    return h_TR


@dropped_linear_op.register_fake
def _(x_TD, a_RD, seeds_T, salt, drop, scale) -> Tensor:
    return x_TD.new_empty(len(x_TD), len(a_RD))


@torch.library.custom_op("logtrain::dropped_linear_backward", mutates_args=())
def dropped_linear_backward_op(
    dh_TR: Tensor, x_TD: Tensor, a_RD: Tensor, seeds_T: Tensor | None, salt: Tensor | None, drop: int, for_x: bool
) -> tuple[Tensor, Tensor]:
    """-> (dx [T, D], or nothing where it is not wanted; dA [R, D])"""
    if not uses_triton(x_TD) or len(a_RD) > MOST_RANKS:
        return dropped_linear_backward_reference(dh_TR, x_TD, a_RD, seeds_T, salt, drop, for_x)
    dh_TR, x_TD, a_RD, (T, D), R = dh_TR.contiguous(), x_TD.contiguous(), a_RD.contiguous(), x_TD.shape, len(a_RD)
    grid, launch = backward_grid(x_TD, R), dropped_linear_backward_launch(R, D, x_TD.element_size())
    dx_TD = torch.empty_like(x_TD) if for_x else x_TD.new_empty(0)
    da_SRD = x_TD.new_empty(grid[1], R, D, dtype=torch.float32)
    if T:
        dropped_linear_backward[grid](
            dh_TR, x_TD, a_RD, seeds_T, dx_TD, da_SRD, T, R, salt_number(salt, drop), drop, kept_scale(drop),
            D=D, DROP=drop > 0, FOR_X=for_x, **launch,
        )  # fmt: skip
    return dx_TD, da_SRD.sum(0).to(a_RD.dtype)


@dropped_linear_backward_op.register_fake
def _(dh_TR, x_TD, a_RD, seeds_T, salt, drop, for_x) -> tuple[Tensor, Tensor]:
    return x_TD.new_empty(x_TD.shape if for_x else 0), a_RD.new_empty(a_RD.shape)


def salt_number(salt: Tensor | None, drop: int) -> int:
    """The salt as a kernel takes it; 0 where nothing is dropped."""
    if not drop:
        return 0
    assert salt is not None, "nothing to draw dropout from"
    return int(salt)


# ---- what the operations cost, and which of them selective recomputation keeps

DROPPED_LINEAR_KEPT = ("logtrain.dropped_linear.default",)  # a matrix product


def dropped_linear_cost(
    x_TD: Tensor, a_RD: Tensor, seeds_T: Tensor | None, salt: Tensor | None, drop: int, scale: float
) -> Cost:
    """The cost of `dropped_linear_op`: the product takes as long as reading x does."""
    (T, D), R = x_TD.shape, len(a_RD)
    return Cost(read=nbytes(x_TD, a_RD, seeds_T), written=T * R * x_TD.element_size(), product=(T, R, D, 1))


def dropped_linear_backward_cost(
    dh_TR: Tensor, x_TD: Tensor, a_RD: Tensor, seeds_T: Tensor | None, salt: Tensor | None, drop: int, for_x: bool
) -> Cost:
    """The cost of `dropped_linear_backward_op`: the masked products for dA and, where it is wanted, dx. dA is summed in
    fp32 by each part of the tokens, then over parts; where A is bf16, a third kernel rounds it. More than MOST_RANKS
    ranks are not described.
    """
    (T, D), R, rounded = x_TD.shape, len(a_RD), a_RD.dtype != torch.float32
    da_RD = 4 * R * D
    da_SRD = backward_grid(x_TD, R)[1] * da_RD
    return Cost(
        read=nbytes(dh_TR, x_TD, a_RD, seeds_T) + da_SRD + rounded * da_RD,
        written=for_x * nbytes(x_TD) + da_SRD + da_RD + rounded * nbytes(a_RD),
        launches=2 + rounded,
        workspace=da_SRD + rounded * da_RD,
        product=(R, D, T, 1 + for_x),
    )


count_flops(torch.ops.logtrain.dropped_linear, dropped_linear_cost)
count_flops(torch.ops.logtrain.dropped_linear_backward, dropped_linear_backward_cost)
