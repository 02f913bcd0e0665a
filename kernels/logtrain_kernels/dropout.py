"""Dropout (Srivastava et al. 2014) whose mask is a hash, not a generator's: whether an element is kept depends on (seed
of the token, salt of the layer, feature) alone. A kernel makes it in registers, wherever it needs it: no mask is ever
stored, and a recomputed block, another rank and the reference keep the same elements.

    low, high = halves of seed + salt        m(x, C) = (x * C) mod 2^32 ^ floor(x * C / 2^32)        all of 32 bits
    hash = (m(m(i ^ low, C1), C2) ^ high) * C3        one for the features 2i and 2i + 1
    bits of feature 2i: the low 16 of hash ^ floor(hash / 2^16), of 2i + 1: the high 16 of hash

An element is dropped if its bits are a number below `drop`: a share of drop / 65,536, and what is kept counts 65,536 /
(65,536 - drop) times. Seeds are 64 random bits. Their high half enters where only one-to-one mappings follow, so the
share is exact; and it keeps tokens whose low halves are near each other from having the same mask in another order.
tests/kernels/test_dropout.py holds the bits to the statistics of independent ones.

Shapes in names: T tokens, D features, P pairs of features.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logtrain_kernels.language import constexpr

STEPS = 2**16  # of a share
WORD = 2**32 - 1
FACTORS = 0x6C8E9CF5, 0x4F2162D3, 0x2C1B3C6D  # odd, and below 2^31: an int64 holds their product with 32 bits
C1, C2, C3 = map(tl.constexpr, FACTORS)


def dropout_steps(share: float) -> int:
    """The `drop` nearest to a share below 1; something is always kept."""
    return min(round(share * STEPS), STEPS - 1)


def kept_scale(drop: int) -> float:
    """How many times a kept element counts, so that the expectation stays."""
    return STEPS / (STEPS - drop)


def kept_reference(seeds_T: Tensor, salt: Tensor | int, drop: int, num_features: int) -> Tensor:
    """Which elements are kept: seeds int64 [T], salt a signed 64-bit number -> bool [T, D]."""
    pair = torch.arange((num_features + 1) // 2, device=seeds_T.device)
    kept_TP2 = torch.empty(len(seeds_T), len(pair), 2, dtype=torch.bool, device=seeds_T.device)
    for seed_T, kept_P2 in zip(seeds_T.split(128), kept_TP2.split(128), strict=True):  # so many fit a CPU's caches
        salted_T1 = seed_T[:, None] + salt
        hash_TP = pair ^ (salted_T1 & WORD)
        for factor in FACTORS[:2]:
            hash_TP *= factor
            hash_TP ^= hash_TP >> 32
            hash_TP &= WORD
        hash_TP ^= (salted_T1 >> 32) & WORD
        hash_TP *= FACTORS[2]
        hash_TP &= WORD
        torch.ge(hash_TP, drop << 16, out=kept_P2[:, :, 1])
        hash_TP ^= hash_TP >> 16
        hash_TP &= 0xFFFF
        torch.ge(hash_TP, drop, out=kept_P2[:, :, 0])
    return kept_TP2.flatten(1)[:, :num_features]


# ---- Triton, for use within a kernel. A pair takes 5 multiplications and 5 other instructions, then each element a
# comparison and a choice: dropped_linear.py says what that means


@triton.jit
def mixed(x, factor: constexpr):
    """m(x, factor)"""
    return tl.umulhi(x, tl.full((), factor, tl.uint32)) ^ (x * factor)


@triton.jit
def kept(salted_T, first, drop, NUM: constexpr):
    """Which of the features from `first` on, which is even, are kept: -> bool [T, NUM]. `salted_T` is int64: the
    seeds, with the salt added.
    """
    pair = tl.arange(0, NUM // 2).to(tl.uint32)[None, :]
    low, high = salted_T.to(tl.uint32) ^ (first >> 1), (salted_T >> 32).to(tl.uint32)
    hash = (mixed(mixed(pair ^ low[:, None], C1), C2) ^ high[:, None]) * C3
    return tl.interleave(((hash ^ (hash >> 16)) & 0xFFFF) >= drop, hash >= drop << 16)
