"""Cohen's kappa against hand-computed examples, and how often its interval holds the truth."""

import numpy as np
import pytest

from logtrain.evaluation.agreement import Agreement, agreement


def lists(table) -> tuple[list[str], list[str]]:
    """Two people's verdicts by how often each pair of them comes."""
    pairs = [(str(i), str(j)) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(int(count))]
    return [a for a, _ in pairs], [b for _, b in pairs]


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        ([[20, 5], [10, 15]], 0.4),  # p = 35 / 50, c = (25 * 30 + 25 * 20) / 2500 = 0.5
        ([[45, 15], [25, 15]], 0.06 / 0.46),  # p = 0.6, c = 0.6 * 0.7 + 0.4 * 0.3 = 0.54
        ([[10, 0, 0], [0, 10, 0], [0, 0, 10]], 1.0),
        ([[0, 10], [10, 0]], -1.0),
        ([[4, 2, 0], [1, 3, 1], [0, 1, 8]], (15 / 20 - (30 + 30 + 81) / 400) / (1 - 141 / 400)),
    ],
)
def test_hand_computed(table, kappa):
    found = agreement(*lists(table))
    assert found.kappa == pytest.approx(kappa, abs=1e-12)
    assert found.num == np.sum(table) and found.share == pytest.approx(np.trace(table) / np.sum(table))
    assert found.kappa is not None and found.low is not None and found.high is not None
    assert -1 <= found.low <= found.kappa <= found.high <= 1
    assert found.high > found.low  # also of people who never disagree


def test_where_chance_explains_all_there_is_no_kappa():
    assert agreement(["accept"] * 5, ["accept"] * 5) == Agreement(5, 1.0, None, None, None)
    assert agreement([], []) == Agreement(0, None, None, None, None)


@pytest.mark.parametrize(("num", "true_share"), [(20, 0.9), (50, 0.4), (100, 0.97)])
def test_the_interval_holds_the_truth(num, true_share):
    draws, shares = np.random.default_rng(1), np.array([0.6, 0.2, 0.2])
    table = (1 - true_share) * np.outer(shares, shares) + true_share * np.diag(shares)
    found = [agreement(*lists(draws.multinomial(num, table.ravel()).reshape(3, 3))) for _ in range(400)]
    held = np.mean([(one.low or 0) <= true_share <= (one.high or 0) for one in found])
    assert 0.92 <= held <= 0.995
