"""Dropout by a hash: the kernel's bits are the reference's, and they behave as independent ones.

Statistics are of fixed seeds, and held to what independent bits stay within but once in a million: 5 deviations.
"""

import functools

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from logtrain.data.layout import token_seeds
from logtrain_kernels import dropout_steps
from logtrain_kernels.dropout import STEPS, kept, kept_reference, kept_scale
from tests.support.precision import triton_kernels

T, D = 2048, 2048
SALT, OTHER_SALT = 0x123456789ABCDEF, -0x7EDCBA987654321
DROP = pytest.mark.parametrize("drop", [dropout_steps(share) for share in (0.05, 0.5)])


@functools.cache
def seeds(seed: int = 1309, epoch: int = 0, first_row: int = 0) -> Tensor:
    """The seeds of four rows, as the loader makes them."""
    return torch.from_numpy(token_seeds(seed, epoch, range(first_row, first_row + 4), T // 4))


@functools.cache
def dropped(drop: int, salt: int = SALT, **settings: int) -> Tensor:
    """Whether elements are dropped, less the share, over its deviation: fp32 [T, D], of independent bits mean 0 and
    deviation 1.
    """
    share = drop / STEPS
    return ((~kept_reference(seeds(**settings), salt, drop, D)).float() - share) / (share * (1 - share)) ** 0.5


def deviations(x: Tensor) -> float:
    """How far the sum of independent numbers of mean 0 and deviation 1 is from 0."""
    return abs(x.sum(dtype=torch.float64).item()) / x.numel() ** 0.5


@DROP
def test_the_share_is_dropped(drop):
    """The share of the whole, of even features and of odd ones is right; that of each feature and each token is more or
    less as often as chance would have it.
    """
    x = dropped(drop)
    assert x.numel() > 4e6
    for part in (x, x[:, ::2], x[:, 1::2]):
        assert deviations(part) < 5
    for axis in (0, 1):
        normal = x.sum(axis) / x.shape[axis] ** 0.5
        assert normal.abs().max() < 6
        kurtosis = 2 + (1 / (drop / STEPS * (1 - drop / STEPS)) - 6) / x.shape[axis]  # variance of a squared sum
        assert deviations((normal.square() - 1) / kurtosis**0.5) < 5


def test_every_step_of_a_share_is_as_likely_as_any_other():
    """The 16 bits of an element fall into 256 intervals equally often, in both halves of a hash."""
    found = torch.stack([kept_reference(seeds(), SALT, step * 256, 64).view(-1, 2).sum(0) for step in range(256)])
    counts = -torch.cat((found, torch.zeros(1, 2, dtype=torch.int64))).diff(dim=0)
    expected = counts.sum(0) / 256
    assert expected.tolist() == [T * 32 / 256] * 2
    chi_square = ((counts - expected) ** 2 / expected).sum(0)
    assert ((chi_square - 255).abs() < 5 * (2 * 255) ** 0.5).all()


@DROP
@pytest.mark.parametrize("lag", [1, 2, 3, 8, 256, 1024])
def test_features_are_independent(drop, lag):
    """A lag of 1 is the two of a hash, and the last of one with the first of the next."""
    x = dropped(drop)
    products = x[:, lag:] * x[:, :-lag]
    for first in (0, 1):
        assert deviations(products[:, first::2]) < 5


@DROP
def test_patterns_of_eight_neighbours_are_as_frequent_as_chance_has_it(drop):
    share = drop / STEPS
    bits = (dropped(drop) > 0).view(-1, 8).long()
    counts = (bits << torch.arange(8)).sum(1).bincount(minlength=256)
    ones = torch.tensor([bin(i).count("1") for i in range(256)])
    expected = len(bits) * share**ones * (1 - share) ** (8 - ones)
    frequent = expected > 10
    chi_square = ((counts - expected) ** 2 / expected)[frequent].sum().item()
    freedom = frequent.sum().item() - 1
    assert freedom > 5
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


OTHERS = {
    "another layer": {"salt": OTHER_SALT},
    "the next seed": {"seed": 1310},
    "the next epoch": {"epoch": 1},
    "the next rows": {"first_row": 4},
}


@DROP
@pytest.mark.parametrize("other", OTHERS)
def test_another_layer_seed_epoch_or_row_drops_independently(drop, other):
    """They would also if features were in the order that a difference in the lowest bits of a seed would put them
    in.
    """
    x, y = dropped(drop), dropped(drop, **OTHERS[other])
    for change in (0, 1, 2, 4):
        assert deviations(x * y[:, order(change)]) < 5


@DROP
@pytest.mark.parametrize("lag", [1, 2, T // 4])
def test_tokens_are_independent(drop, lag):
    """Neighbours are, those of the next row and others."""
    x = dropped(drop)
    for change in (0, 1, 2, 4):
        assert deviations(x[lag:] * x[:-lag][:, order(change)]) < 5


def order(change: int) -> Tensor:
    """Features whose hashes' numbers are those of 0, 1, 2, ... with bits changed."""
    return ((torch.arange(D // 2) ^ change)[:, None] * 2 + torch.arange(2)).flatten()


# ---- the kernel


@triton.jit
def store_kept(seeds_T, kept_TD, salt, drop, D, T: tl.constexpr, BLOCK: tl.constexpr):
    token, first = tl.arange(0, T), tl.program_id(0) * BLOCK
    column = first + tl.arange(0, BLOCK)
    keep = kept(tl.load(seeds_T + token) + salt, first, drop, BLOCK)
    tl.store(kept_TD + token[:, None] * D + column[None, :], keep, mask=column[None, :] < D)


@pytest.mark.parametrize(("num_features", "block"), [(1, 16), (37, 16), (300, 64), (4096, 128)])
@pytest.mark.parametrize(("salt", "drop"), [(SALT, 3277), (OTHER_SALT, 32768), (0, 60000)])
def test_the_kernel_keeps_what_the_reference_keeps(num_features, block, salt, drop):
    with triton_kernels():
        seeds_T = torch.tensor([*seeds()[:58].tolist(), 0, 1, -1, 2**63 - 1, -(2**63), 2**32])
        found = torch.zeros(64, num_features, dtype=torch.bool)
        programs = triton.cdiv(num_features, block)
        store_kept[(programs,)](seeds_T, found, salt, drop, num_features, T=64, BLOCK=block)
        assert torch.equal(found, kept_reference(seeds_T, salt, drop, num_features))
        assert num_features == 1 or (found.any() and not found.all())


# ---- shares


def test_a_share_is_rounded_to_the_nearest_step_and_something_is_always_kept():
    assert [dropout_steps(share) for share in (0.0, 0.05, 0.5, 1 - 1e-9)] == [0, 3277, 32768, 65535]
    for share in (0.05, 0.3, 0.5, 0.999):
        assert dropout_steps(share) / STEPS == pytest.approx(share, abs=0.5 / STEPS)
        assert kept_scale(dropout_steps(share)) == pytest.approx(1 / (1 - share), rel=1e-2)
    assert kept_scale(0) == 1


@DROP
def test_the_expectation_stays(drop):
    kept_TD = kept_reference(seeds(), SALT, drop, D)
    share = drop / STEPS
    deviation = (share / (1 - share) / kept_TD.numel()) ** 0.5
    assert kept_TD.double().mean().item() * kept_scale(drop) == pytest.approx(1, abs=5 * deviation)
