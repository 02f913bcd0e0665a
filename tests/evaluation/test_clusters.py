"""Intervals of figures of sets: what they hold, and that rows that are alike make nothing more certain."""

import numpy as np
import pytest

from logtrain.evaluation import detection
from logtrain.evaluation.clusters import Tally, by_cluster, figure_differences, figure_intervals, figures_of, ratio
from logtrain.evaluation.intervals import bootstrap, paired, wilson


def mean_tally(values: np.ndarray) -> Tally:
    """The plain mean as a figure of a set, each value a cluster."""
    return Tally(np.stack([values, np.ones_like(values)], 1), lambda sums: {"mean": ratio(sums[..., 0], sums[..., 1])})


def draw(rng: np.random.Generator, clusters: int, recall: float = 0.7) -> np.ndarray:
    """TP, FP, FN, TN and unread of clusters of 1 to 30 alike rows, a third of them abnormal."""
    size_G = rng.geometric(0.2, clusters).clip(1, 30)
    is_abnormal_G = rng.random(clusters) < 1 / 3
    is_right_G = rng.random(clusters) < np.where(is_abnormal_G, recall, 0.9)
    cell_G = np.select(
        [is_abnormal_G & is_right_G, ~is_abnormal_G & ~is_right_G, is_abnormal_G & ~is_right_G], [0, 1, 2], 3
    )
    return np.eye(5)[cell_G] * size_G[:, None]


def test_of_a_mean_they_are_nearly_those_of_the_bootstrap():
    values = np.random.default_rng(1).beta(1, 3, 80)
    found, expected = figure_intervals(mean_tally(values))["mean"], bootstrap(values)
    assert found.mean == pytest.approx(expected.mean)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.004)


def test_of_a_difference_of_means_too():
    a, b = np.random.default_rng(2).beta(2, 3, (2, 60))
    found, expected = figure_differences(mean_tally(a), mean_tally(b))["mean"], paired(a, b)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.006)
    assert found.p_value == pytest.approx(expected.p_value, abs=0.01)


def test_intervals_hold_the_true_f1(fewer_resamples):
    """The truth: that of very many clusters, drawn in the same way."""
    rng = np.random.default_rng(3)
    truth = figures_of(Tally(draw(rng, 400_000), detection.figures))
    held = {name: [] for name in ("anomaly_f1", "anomaly_recall", "anomaly_mcc", "anomaly_balanced")}
    for _ in range(150):
        found = figure_intervals(Tally(draw(rng, 60), detection.figures))
        for name, each in held.items():
            each.append(found[name].low <= truth[name] <= found[name].high)
    assert all(0.88 <= np.mean(each) <= 0.985 for each in held.values()), {k: np.mean(v) for k, v in held.items()}


def test_rows_taken_one_by_one_would_be_too_certain(fewer_resamples):
    """Rows of a cluster are alike: taken for independent, their intervals hold the truth too seldom."""
    rng = np.random.default_rng(4)
    truth = figures_of(Tally(draw(rng, 400_000), detection.figures))["anomaly_f1"]
    held = []
    for _ in range(60):
        rows = np.repeat(np.eye(5), draw(rng, 60).sum(0).astype(int), axis=0)
        found = figure_intervals(Tally(rows, detection.figures))["anomaly_f1"]
        held.append(found.low <= truth <= found.high)
    assert np.mean(held) < 0.8


def test_equal_models_differ_significantly_in_5_percent(fewer_resamples):
    rng = np.random.default_rng(5)
    found = []
    for _ in range(150):
        counts = draw(rng, 40)
        is_swapped = rng.random(40) < 0.5
        other = np.where(is_swapped[:, None], counts[:, [2, 3, 0, 1, 4]], counts)  # errs where the first is right
        keep = rng.random(40) < 0.5
        a, b = np.where(keep[:, None], counts, other), np.where(keep[:, None], other, counts)
        found.append(figure_differences(*(Tally(each, detection.figures) for each in (a, b)))["anomaly_f1"].significant)
    assert np.mean(found) <= 0.1
    worse = draw(np.random.default_rng(6), 40, recall=1.0)
    wrong = worse[:, [2, 3, 0, 1, 4]]
    difference = figure_differences(Tally(worse, detection.figures), Tally(wrong, detection.figures))["anomaly_f1"]
    assert difference.significant and difference.low > 0.3


def test_what_is_not_defined_has_no_figure_and_few_clusters_no_interval():
    normal_alone = Tally(np.array([[0, 1, 0, 3, 0], [0, 0, 0, 2, 0]], float), detection.figures)
    assert "anomaly_f1" not in figure_intervals(normal_alone)
    one = figure_intervals(Tally(np.array([[2, 1, 0, 3, 0]], float), detection.figures))["anomaly_f1"]
    assert (one.low, one.high, one.num_used) == (None, None, 1)


def test_none_of_all_is_no_certainty():
    """Of a share, where no resample differs: Wilson's interval of as many answers as there are clusters."""
    rows = [detection.Verdict(True, False)] * 40
    found = figure_intervals(detection.tally(rows, [i // 4 for i in range(40)]))["anomaly_accuracy"]
    assert found == wilson([0.0] * 10) and found.high > 0.2


def test_sums_by_cluster():
    counts = np.array([[1, 0], [0, 2], [3, 0]], float)
    assert by_cluster(counts, ["b", "a", "b"]).tolist() == [[4, 0], [0, 2]]
