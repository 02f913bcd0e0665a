"""Intervals hold what they promise: simulated from known distributions, they cover the truth as often as they say."""

import itertools
import json
import math

import numpy as np
import pytest

from logtrain.evaluation import intervals, scoring
from logtrain.evaluation.intervals import wilson

pytestmark = pytest.mark.slow

SETS, SEEDS = 1000, 3  # simulated: the standard error of a coverage of 95% is 0.4%


def beta(a, b, zeros=0.0):
    """Scores in 0..1, so many of them zero."""
    return lambda random, shape: (random.random(shape) >= zeros) * random.beta(a, b, shape), (1 - zeros) * a / (a + b)


def difference(of_a, of_b, noise):
    """Of two models on the same questions, whose difficulty both share."""

    def draw(random, shape):
        difficulty = random.normal(0, 1, shape)
        a, b = (1 / (1 + np.exp(-(shift + difficulty + random.normal(0, noise, shape)))) for shift in (of_a, of_b))
        return a - b

    return draw, draw(np.random.default_rng(99), 1_000_000).mean()


def gain(share):
    """A model that differs from the other in a share of the answers only, and for the better."""
    return lambda random, shape: (random.random(shape) < share) * random.beta(2, 5, shape), share * 2 / 7


def failing(share):
    """A model that is like the other but for a share of the answers, in which it says nothing."""

    def draw(random, shape):
        a = random.beta(2, 3, shape)
        b = np.clip(a + random.normal(0, 0.08, shape), 0, 1) * (random.random(shape) >= share)
        return a - b

    return draw, draw(np.random.default_rng(99), 1_000_000).mean()


def coverage(distribution, n: int) -> tuple[float, float, float]:
    """Shares of intervals that hold the true mean, lie above it, lie below it."""
    draw, truth = distribution
    random = np.random.default_rng(n)
    of_seeds = [intervals._intervals(draw(random, (n, SETS)), seed) for seed in range(SEEDS)]
    above = np.mean([low_D > truth for _, low_D, _ in of_seeds])
    below = np.mean([high_D < truth for _, _, high_D in of_seeds])
    print(f"N = {n}: {1 - above - below:.1%} ({above:.1%} above, {below:.1%} below)")
    return 1 - above - below, above, below


HELD = {
    "fuzzy, R-1 of a tuned model": beta(8, 8),
    "ROUGE of an untuned model": beta(2, 5),
    "scores near 1": beta(8, 2),
    "most scores near 0": beta(0.5, 3),
    "BLEU, 3 in 10 are 0": beta(1, 3, zeros=0.3),
    "BLEU, 6 in 10 are 0": beta(2, 3, zeros=0.6),
    "two equal models": difference(-0.5, -0.5, noise=0.5),
    "two unequal models": difference(0.5, -1.0, noise=0.8),
    "a gain in half the answers": gain(0.5),
}


@pytest.mark.parametrize("n", [20, 76, 500])
@pytest.mark.parametrize("name", HELD)
def test_95_percent_of_intervals_hold_the_true_mean(name, n, fewer_resamples):
    covered, above, below = coverage(HELD[name], n)
    assert 0.93 <= covered <= 0.97
    if n == 500:
        assert min(above, below) >= 0.015 and max(above, below) <= 0.035  # both ends, not one for the other


LIMITS = [
    (beta(2, 3, zeros=0.9), 20, 0.80, 0.88),  # 2 scores that are not 0
    (beta(2, 3, zeros=0.974), 76, 0.80, 0.88),  # 2
    (gain(0.1), 20, 0.80, 0.88),  # 2
    (beta(2, 3, zeros=0.9), 50, 0.92, 0.97),  # 5
    (failing(0.1), 20, 0.86, 0.91),
    (failing(0.1), 50, 0.925, 0.955),
    (failing(0.1), 200, 0.94, 0.97),
    ((lambda random, shape: random.lognormal(0, 1, shape), np.exp(0.5)), 20, 0.88, 0.93),
    ((lambda random, shape: random.lognormal(0, 1, shape), np.exp(0.5)), 500, 0.93, 0.96),
    (beta(0.8, 4), 5, 0.87, 0.92),
    (difference(0.0, 0.0, noise=0.5), 5, 0.90, 0.95),
]


@pytest.mark.parametrize(("distribution", "n", "least", "most"), LIMITS)
def test_the_limits_are_as_documented(distribution, n, least, most, fewer_resamples):
    assert least <= coverage(distribution, n)[0] <= most


def test_real_scores(shared, fewer_resamples):
    """Real answers held against the answer to another question: the 899 scores are the population to draw from."""
    rows = json.loads((shared / "data/loglm/loglm_instruction_2632.json").read_text())
    outputs = [output for output in dict.fromkeys(row["output"] for row in rows) if len(output.split()) >= 20]
    scores = scoring.score_all(list(itertools.pairwise(outputs)))
    for metric in ("fuzzy", "bleu", "rouge1", "rouge2", "rougeL", "rougeLsum"):
        population = np.array([of_pair[metric] for of_pair in scores])
        distribution = lambda random, shape: random.choice(population, shape), population.mean()  # noqa: B023
        for n in (20, 200):
            assert 0.93 <= coverage(distribution, n)[0] <= 0.97


def test_plain_quantiles_would_not_do(fewer_resamples):
    """What the correction is for: the same sets by the 2.5% and 97.5% quantiles of the same resampled means."""
    draw, truth = beta(0.3, 3)
    x_ND = draw(np.random.default_rng(20), (20, SETS))
    resampled_RD = np.concatenate([count_CN @ x_ND for count_CN in intervals.resamples(20, seed=0)]) / 20
    low_D, high_D = np.quantile(resampled_RD, [0.025, 0.975], axis=0)
    covered, _, below = coverage((draw, truth), 20)
    print(f"{1 - (low_D > truth).mean() - (high_D < truth).mean():.1%} ({(high_D < truth).mean():.1%} below)")
    assert 1 - (low_D > truth).mean() - (high_D < truth).mean() < 0.90 < 0.92 < covered
    assert (high_D < truth).mean() > 0.09 > 0.065 > below


@pytest.mark.parametrize("n", [20, 76, 500])
def test_wilsons_interval_covers_as_documented(n):
    """Exact: the chance of each number of ones, summed over those whose interval holds the truth."""
    ends = [wilson([1] * ones + [0] * (n - ones))[1:3] for ones in range(n + 1)]

    def covered(p: float) -> float:
        chances = (math.comb(n, ones) * p**ones * (1 - p) ** (n - ones) for ones in range(n + 1))
        return math.fsum(chance for chance, (low, high) in zip(chances, ends, strict=True) if low <= p <= high)

    assert all(0.925 <= covered(p) <= 0.982 for p in np.linspace(0.1, 0.9, 81))
    assert all(covered(p) >= 0.925 for p in np.linspace(2 / n, 1 - 2 / n, 81))
    worst = min(covered(p / n) for p in np.linspace(0.05, 1, 96))
    assert 0.83 < worst < 0.88
