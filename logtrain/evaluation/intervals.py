"""Confidence intervals of the mean score over a test set, and of the difference of two models on the same samples.

    bootstrap(values_N)    the mean of one model's scores, with its 95% interval
    wilson(values_N)       the mean and its interval, of scores that are only 0 or 1
    paired(a_N, b_N)       the mean difference of two models' scores, with its 95% interval and a p-value
    bootstrap_all, paired_all    bootstrap and paired of several scores at once

Of 10,000 resampled means an interval takes not the 2.5% and 97.5% quantiles but, at each end, the one further out of

    Phi(t)                                     the percentile interval, expanded for small N (Hesterberg 2015)
    Phi(a + (a + t) / (1 - a * (a + t)))       BCa, which corrects the percentile interval for skewness (Efron 1987)

with t = -+ sqrt(N / (N - 1)) * the 97.5% quantile of Student's t with N - 1 degrees of freedom, a = skewness / (6 *
sqrt(N)): of a mean, BCa's acceleration and, up to terms of 1 / N, its bias correction. The plain quantiles are too
narrow, and too low for scores with a long upper tail: for 20 scores of beta(0.3, 3) they hold the true mean in 88% of
cases instead of 95%, these in 94%. Of the two ends the one further out is taken because the skewness of a small sample
is too uncertain to shorten an interval by.

tests/evaluation/test_interval_coverage.py simulates where this holds and where not. 93% to 97% of intervals hold the
true mean, for N from 20 to 500, of skewed scores in 0..1, of ones with a spike at 0 as unsmoothed BLEU has, of
differences of two models, and of real answers' scores. But a sample cannot show what is not in it: where the mean hangs
on a few scores, the interval ends too soon on the side of the rare ones. With 2 scores expected that are not 0, of 20
or of 76, it is 83%, with 5 of 50 96%; for a model that fails in 1 of 10 answers 90% at N = 20, 94% at 50. Scores
without an upper bound (length_ratio: one answer that never ends outweighs the others) get 91% at 20. At N = 5 it is 90%
to 93%, far less with a spike. Equal scores have an interval without width, although after 0 of N the truth may be 3 /
N. For scores that are only 0 or 1 `wilson` has an interval there too; for differences there is none.

The samples must be independent; the answers of one conversation are not, so their mean is one sample (comparison.py).

Efron 1987, "Better bootstrap confidence intervals"; Hesterberg 2015, "What teachers should know about the bootstrap";
Wilson 1927, "Probable inference, the law of succession, and statistical inference".

Legend: N samples, R resamples, C resamples of a chunk, D sets of N samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from logtrain.core.student_t import student_t

CONFIDENCE = 0.95
RESAMPLES = 10_000
CHUNK_ELEMENTS = 1 << 22  # of [C, N]: 32 MB for each array of 8-byte elements, whatever N is
NORMAL = NormalDist()

Values = Sequence[float | None] | np.ndarray
"""A score of each sample; None or NaN where there is none."""


class Mean(NamedTuple):
    """The mean of a model's scores, with its 95% interval."""

    mean: float | None
    """None without a value."""
    low: float | None
    """Lower end of the 95% interval. None below two values, or, of `wilson`, without a value."""
    high: float | None
    """Upper end of the 95% interval. None where `low` is."""
    num_used: int
    """Values that were neither None nor NaN."""


class Difference(NamedTuple):
    """The mean difference of two models' scores of the same samples, with its 95% interval and a p-value."""

    difference: float | None
    """Mean of a - b: above 0 where a scores higher. None without a pair."""
    low: float | None
    """Lower end of the 95% interval. None below two pairs."""
    high: float | None
    """Upper end of the 95% interval. None below two pairs."""
    num_used: int
    """Pairs of which neither value was None or NaN."""
    significant: bool
    """Whether 0 is outside the interval and p_value is at most 0.05. Of two equal models' 2, 3, 4 and 5 differences
    the interval alone leaves 0 out in 50%, 25%, 12% and 7%: all resampled means are inside, but there are few. The
    p-value is above 0.05 below 6 pairs, whatever they are."""
    p_value: float | None
    """How often, of 10,000 times, the difference is at least as far from 0 when a and b are swapped at random in every
    pair (the sign-flip or paired randomisation test, two-sided). It asks whether the models can be told apart at all,
    the interval how large the mean difference is: where a few samples decide, one can say yes and the other no. None
    below two pairs."""


class Intervals(NamedTuple):
    """Means of D sets of values, float64 [D] each, and the ends of their 95% intervals."""

    mean_D: np.ndarray
    """The means."""
    low_D: np.ndarray
    """Lower ends of the intervals."""
    high_D: np.ndarray
    """Upper ends of the intervals."""


def bootstrap(values_N: Values, seed: int = 0) -> Mean:
    """The mean of scores and its interval. The same values and seed always give the same interval.

    It takes 0.1 s for N = 500, 20 s for 100,000, and 150 MB at most.
    """
    return bootstrap_all({"": values_N}, seed)[""]


def bootstrap_all(columns: Mapping[str, Values], seed: int = 0) -> dict[str, Mean]:
    """`bootstrap` of several scores of the same samples, from the same resamples, hardly slower than of one score."""
    numbers = {name: _numbers(values_N) for name, values_N in columns.items()}
    means: dict[str, Mean] = {}
    for x_ND, names in _by_samples(numbers):
        means |= zip(names, _means(x_ND, seed), strict=True)
    return {name: means[name] for name in columns}


def wilson(values_N: Values) -> Mean:
    """The mean of scores that are only 0 or 1, with Wilson's score interval: 30 ones of 30 get 0.886 to 1.

    N * mean +- 1.96 * sqrt(N * p * (1 - p)) is solved for p. From N = 20 on, 92.5% to 98% of the intervals hold a truth
    from 0.1 to 0.9, 92.5% to 100% one of at least 2 expected ones and zeros, but 84% one of 0.17 / N, its worst. Where
    scores in between would be possible, as of BLEU that is 0 in all answers, it is wider than it need be.
    """
    x_N = _numbers(values_N)
    x_N = x_N[~np.isnan(x_N)]
    assert np.isin(x_N, (0, 1)).all(), "only 0 and 1"
    n, ones = len(x_N), float(x_N.sum())
    if n == 0:
        return Mean(None, None, None, 0)
    z = NORMAL.inv_cdf((1 + CONFIDENCE) / 2)
    half = z * sqrt(ones * (n - ones) / n + z**2 / 4)
    low, high = ((ones + z**2 / 2 + reach) / (n + z**2) for reach in (-half, half))
    return Mean(ones / n, _without_rounding(low), _without_rounding(high), n)


def paired(a_N: Values, b_N: Values, seed: int = 0) -> Difference:
    """The mean of a - b over the same N samples, and its interval. Raises ValueError for unequal numbers of samples."""
    return paired_all({"": a_N}, {"": b_N}, seed)[""]


def paired_all(a: Mapping[str, Values], b: Mapping[str, Values], seed: int = 0) -> dict[str, Difference]:
    """`paired` of several scores of the same samples, by their names in both. Raises ValueError as `paired` does."""
    for name in a:
        if len(a[name]) != len(b[name]):
            raise ValueError(
                f"{len(a[name])} scores of one model and {len(b[name])} of the other; give both of the same samples"
            )
    numbers = {name: _numbers(a[name]) - _numbers(b[name]) for name in a}
    differences: dict[str, Difference] = {}
    for x_ND, names in _by_samples(numbers):
        p_D = _sign_flip(x_ND, seed).tolist() if len(x_ND) >= 2 else [None] * len(names)
        differences |= zip(names, map(_difference, _means(x_ND, seed), p_D), strict=True)
    return {name: differences[name] for name in a}


def _difference(mean: Mean, p_value: float | None) -> Difference:
    if mean.low is None or mean.high is None or p_value is None:
        return Difference(mean.mean, None, None, mean.num_used, False, None)
    low, high = _without_rounding(mean.low), _without_rounding(mean.high)
    significant = p_value <= 1 - CONFIDENCE and (low > 0 or high < 0)
    return Difference(mean.mean, low, high, mean.num_used, significant, p_value)


def _without_rounding(end: float) -> float:
    """An end that is 0 but for the rounding of its sums is 0, and not -0."""
    return round(end, 12) + 0.0


def _by_samples(numbers: Mapping[str, np.ndarray]) -> Iterator[tuple[np.ndarray, list[str]]]:
    """(float64 [N, D], its D names) for each group of columns that have values in the same N samples."""
    groups: dict[bytes, list[str]] = {}
    for name, x_N in numbers.items():
        groups.setdefault(np.isnan(x_N).tobytes(), []).append(name)
    for names in groups.values():
        used_N = ~np.isnan(numbers[names[0]])
        yield np.stack([numbers[name][used_N] for name in names], axis=1), names


def _numbers(values_N: Values) -> np.ndarray:
    """float64 [N], NaN where there is no score."""
    x_N = np.array(values_N, np.float64)  # None becomes NaN
    assert x_N.ndim == 1 and not np.isinf(x_N).any(), "scores are a flat list of finite numbers"
    return x_N


def _means(x_ND: np.ndarray, seed: int) -> list[Mean]:
    """Of D sets of N values, none of which is missing."""
    n, d = x_ND.shape
    if n < 2:
        return [Mean(x_ND[0, i].item() if n else None, None, None, n) for i in range(d)]
    found = _intervals(x_ND, seed)
    ends = zip(found.mean_D.tolist(), found.low_D.tolist(), found.high_D.tolist(), strict=True)
    return [Mean(mean, low, high, n) for mean, low, high in ends]


def _intervals(x_ND: np.ndarray, seed: int) -> Intervals:
    """Of D sets of N >= 2 values, from the same resamples."""
    n = len(x_ND)
    mean_D = x_ND.mean(0)
    centered_ND = x_ND - mean_D
    variance_D = (centered_ND**2).mean(0)
    third_D = (centered_ND**3).mean(0)
    skewness_D = np.divide(third_D, variance_D**1.5, out=np.zeros_like(mean_D), where=variance_D > 0)
    acceleration_D = skewness_D / (6 * sqrt(n))

    resampled_RD = np.concatenate([count_CN @ centered_ND for count_CN in resamples(n, seed)]) / n
    resampled_RD.sort(0)
    ends = []
    for t, outer in ((-widened(n), np.minimum), (widened(n), np.maximum)):
        # The divisor is at least 0.6: the skewness of n numbers is at most (n - 2) / sqrt(n - 1).
        shifted_D = acceleration_D + t
        bca_D = [NORMAL.cdf(z) for z in acceleration_D + shifted_D / (1 - acceleration_D * shifted_D)]
        ends.append(mean_D + _quantiles(resampled_RD, outer(bca_D, NORMAL.cdf(t))))
    # Rounding takes a mean out of the range of its values; of equal ones the interval has no width.
    low_D, mean_D, high_D = np.clip([ends[0], mean_D, ends[1]], x_ND.min(0), x_ND.max(0))
    return Intervals(mean_D, low_D, high_D)


def resamples(n: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n samples is in each resample: float64 [C, n] by [C, n], RESAMPLES in all."""
    random = np.random.default_rng(seed)
    for size in _chunks(n):
        index_CN = random.integers(0, n, (size, n))
        index_CN += n * np.arange(size)[:, None]
        yield np.bincount(index_CN.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def widened(n: int) -> float:
    """How many standard errors a 95% interval reaches to each side, of n >= 2 samples."""
    return sqrt(n / (n - 1)) * student_t(n - 1, CONFIDENCE)


def _sign_flip(difference_ND: np.ndarray, seed: int) -> np.ndarray:
    """Two-sided p-values, float64 [D], of D sets of N differences. A set as it is counts as one draw: none is 0."""
    n, d = difference_ND.shape
    sum_D = difference_ND.sum(0)
    least_D = np.abs(sum_D) - 1e-12 * np.abs(difference_ND).sum(0)  # equal but for the order of summation
    reached_D = np.zeros(d, np.int64)
    for swapped_CN in swaps(n, seed):
        reached_D += (np.abs(sum_D - 2 * (swapped_CN @ difference_ND)) >= least_D).sum(0)
    return (1 + reached_D) / (1 + RESAMPLES)


def swaps(n: int, seed: int) -> Iterator[np.ndarray]:
    """Which of n samples change places in each draw of the randomisation test: float64 [C, n] of 0 and 1 by [C, n]."""
    random = np.random.default_rng(seed)
    for size in _chunks(n):
        bits = np.unpackbits(np.frombuffer(random.bytes(-(-size * n // 8)), np.uint8), count=size * n)
        yield bits.reshape(size, n).astype(np.float64)


def _chunks(n: int) -> Iterator[int]:
    """Sizes of the chunks, in resamples, in which those of n samples are drawn."""
    size = max(1, CHUNK_ELEMENTS // n)
    for start in range(0, RESAMPLES, size):
        yield min(size, RESAMPLES - start)


def _quantiles(sorted_RD: np.ndarray, level_D: np.ndarray) -> np.ndarray:
    """A quantile of each column, each at its own level, interpolated as numpy.quantile does."""
    index_D = level_D * (len(sorted_RD) - 1)
    below_D = index_D.astype(np.int64)
    above_D = np.minimum(below_D + 1, len(sorted_RD) - 1)
    low_D, high_D = (np.take_along_axis(sorted_RD, at_D[None], 0)[0] for at_D in (below_D, above_D))
    return low_D + (index_D - below_D) * (high_D - low_D)
