"""Confidence intervals of figures that are no means, as F1 is none: of sums of counts over clusters of a test set.

    Tally(counts_GK, figures)    what each cluster contributes, and the figures that the sums give
    figure_intervals(tally)      each figure with its 95% interval
    figure_differences(a, b)     each difference of two models' figures, with its interval and a p-value

A log has the same line thousands of times, and a model that errs on one errs on all: lines of one template are a
cluster, which is drawn as a whole. F1 from 500 lines of 20 templates is known as well as 20 observations allow.

An interval takes at each end the one further out of the percentile interval, expanded for few clusters, and BCa with
its bias correction from the resamples and its acceleration from leaving out each cluster in turn, as intervals.py has
it for means. The p-value is that of the paired randomisation test with whole clusters swapped between the models. What
a resample without a positive row leaves undefined is left out of its quantiles. tests/evaluation/test_clusters.py
simulates it: of 60 clusters of unequal size 93% to 98% of intervals hold the true value.

Efron 1987, "Better bootstrap confidence intervals"; Cameron, Gelbach and Miller 2008, "Bootstrap-based improvements for
inference with clustered errors".

Legend: G clusters, K counts, R resamples, C resamples of a chunk.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from logtrain.evaluation.intervals import CONFIDENCE, NORMAL, Difference, Mean, resamples, swaps, widened, wilson

Figures = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""float64 [..., K] sums -> each figure by its name, float64 [...], NaN where it is not defined."""

LEAST_DEFINED = 0.5  # share of the resamples in which a figure must be defined to have an interval


class Tally(NamedTuple):
    """Counts whose sums give the figures of a set."""

    counts_GK: np.ndarray
    """float64: what each cluster contributes."""
    figures: Figures
    """The figures of sums."""
    shares: tuple[str, ...] = ()
    """Those that are shares of all rows: where all or none are, the interval is Wilson's, of the clusters."""


def by_cluster(counts_NK: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """The sums over the rows of each cluster, float64 [G, K], in the order of their first rows."""
    numbers: dict[Hashable, int] = {}
    cluster_N = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    sums_GK = np.zeros((len(numbers), counts_NK.shape[1]))
    np.add.at(sums_GK, cluster_N, counts_NK)
    return sums_GK


def figures_of(tally: Tally) -> dict[str, float]:
    """The figures of a set that are defined."""
    found = tally.figures(tally.counts_GK.sum(0))
    return {name: float(value) for name, value in found.items() if not np.isnan(value)}


def figure_intervals(tally: Tally, seed: int = 0) -> dict[str, Mean]:
    """Each defined figure with its interval; `num_used` is the number of clusters, below two of which none has one."""
    values, n = figures_of(tally), len(tally.counts_GK)
    if n < 2:
        return {name: Mean(value, None, None, n) for name, value in values.items()}
    resampled = _resampled(tally, seed)
    left_out = tally.figures(tally.counts_GK.sum(0) - tally.counts_GK)
    found = {name: Mean(value, *_ends(value, resampled[name], left_out[name]), n) for name, value in values.items()}
    return found | {name: wilson(n * [found[name].mean]) for name in tally.shares if found[name].mean in (0, 1)}


def figure_differences(a: Tally, b: Tally, seed: int = 0) -> dict[str, Difference]:
    """Each difference a - b that is defined, of two models' counts over the same clusters."""
    assert a.counts_GK.shape == b.counts_GK.shape, "the same clusters, in one order"
    of_a, of_b, n = figures_of(a), figures_of(b), len(a.counts_GK)
    values = {name: of_a[name] - of_b[name] for name in of_a if name in of_b}
    if n < 2:
        return {name: Difference(value, None, None, n, False, None) for name, value in values.items()}
    drawn_a, drawn_b = _resampled(a, seed), _resampled(b, seed)
    without_a, without_b = (tally.figures(tally.counts_GK.sum(0) - tally.counts_GK) for tally in (a, b))
    p_values = _swapped(a, b, values, seed)
    found = {}
    for name, value in values.items():
        low, high = _ends(value, drawn_a[name] - drawn_b[name], without_a[name] - without_b[name])
        is_outside = low is not None and high is not None and (low > 0 or high < 0)
        significant = is_outside and p_values[name] <= 1 - CONFIDENCE
        found[name] = Difference(value, low, high, n, significant, p_values[name])
    return found


def ratio(part: np.ndarray, whole: np.ndarray, empty: float = float("nan")) -> np.ndarray:
    """part / whole, float64 in any shape; `empty` where the whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, empty), where=whole != 0)


def _resampled(tally: Tally, seed: int) -> dict[str, np.ndarray]:
    """Each figure of the resamples, float64 [R]; the same clusters are drawn whatever the counts."""
    drawn = [tally.figures(count_CG @ tally.counts_GK) for count_CG in resamples(len(tally.counts_GK), seed)]
    return {name: np.concatenate([part[name] for part in drawn]) for name in drawn[0]}


def _ends(value: float, resampled_R: np.ndarray, left_out_G: np.ndarray) -> tuple[float | None, float | None]:
    """The ends of the interval of a figure. `left_out_G`: the figure without each of the clusters."""
    defined_R = resampled_R[~np.isnan(resampled_R)]
    if len(defined_R) < LEAST_DEFINED * len(resampled_R):
        return None, None
    gaps_G = np.nan_to_num(np.nanmean(left_out_G) - left_out_G) if not np.isnan(left_out_G).all() else np.zeros(1)
    spread = float((gaps_G**2).sum())
    acceleration = float((gaps_G**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    below = float((defined_R < value - 1e-12).mean() + (abs(defined_R - value) <= 1e-12).mean() / 2)
    bias = NORMAL.inv_cdf(min(max(below, 1 / len(defined_R)), 1 - 1 / len(defined_R)))
    ends = []
    for t, outer in ((-widened(len(left_out_G)), min), (widened(len(left_out_G)), max)):
        shifted = bias + t
        bca = NORMAL.cdf(bias + shifted / max(1 - acceleration * shifted, 0.1))
        ends.append(float(np.quantile(defined_R, outer(bca, NORMAL.cdf(t)))))
    low, high = (round(end, 12) + 0.0 for end in ends)
    return min(low, value), max(high, value)


def _swapped(a: Tally, b: Tally, values: Mapping[str, float], seed: int) -> dict[str, float]:
    """Two-sided p-values: how often a difference is as far from 0 when each cluster's models change places at random.

    An undefined difference counts as one that is as far. A set as it is counts as one draw: none is 0.
    """
    sum_a, sum_b = a.counts_GK.sum(0), b.counts_GK.sum(0)
    reached, draws = dict.fromkeys(values, 0), 0
    for swapped_CG in swaps(len(a.counts_GK), seed):
        draws += len(swapped_CG)
        moved_CK = swapped_CG @ (b.counts_GK - a.counts_GK)
        of_a, of_b = a.figures(sum_a + moved_CK), b.figures(sum_b - moved_CK)
        for name, value in values.items():
            reached[name] += int((~(abs(of_a[name] - of_b[name]) < abs(value) - 1e-12)).sum())
    return {name: (1 + count) / (1 + draws) for name, count in reached.items()}
