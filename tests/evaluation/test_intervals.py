"""Means, intervals and p-values equal those of their definitions, and special cases are what they must be."""

import itertools
import math
import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest

from logtrain.core.student_t import student_t
from logtrain.evaluation import intervals
from logtrain.evaluation.intervals import Mean, bootstrap, paired, paired_all, wilson

SETS = 1000  # simulated


def test_a_mean_of_nothing_or_of_one_has_no_interval():
    assert bootstrap([]) == Mean(None, None, None, 0)
    assert bootstrap([None, float("nan")]) == Mean(None, None, None, 0)
    assert bootstrap([0.25]) == Mean(0.25, None, None, 1)
    assert paired([], []) == (None, None, None, 0, False, None)
    assert paired([0.75], [0.25]) == (0.5, None, None, 1, False, None)
    assert paired([0.75, None], [None, 0.25]) == (None, None, None, 0, False, None)


def test_two_and_three_values():
    """All resampled means are inside: the interval is the range."""
    assert bootstrap([0.25, 0.75])[:3] == (0.5, 0.25, 0.75)
    assert bootstrap([0.0, 0.0, 0.9])[:3] == pytest.approx((0.3, 0.0, 0.9))


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1.0])
def test_equal_values_have_no_width(value):
    for n in (2, 7, 500):
        assert bootstrap([value] * n) == Mean(value, value, value, n)


def test_a_model_against_itself():
    a_N = np.random.default_rng(0).beta(2, 5, 500)
    assert paired(a_N, a_N.copy()) == (0.0, 0.0, 0.0, 500, False, 1.0)


def test_wilsons_interval():
    """Its ends are the truths whose own standard error, 1.96 times, reaches to the mean."""
    for n, ones in ((10, 1), (30, 30), (30, 0), (76, 41)):
        mean, low, high, used = wilson([1.0] * ones + [0.0] * (n - ones) + [None])
        assert (mean, used) == (ones / n, n)
        for end in {low, high} - {0.0, 1.0}:
            assert abs(ones / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-5)
    assert wilson([1] * 30)[:3] == (1.0, pytest.approx(0.8865, abs=1e-4), 1.0)
    assert wilson([0] * 30)[:3] == (0.0, 0.0, pytest.approx(0.1135, abs=1e-4))
    assert wilson([None]) == Mean(None, None, None, 0)
    with pytest.raises(AssertionError, match="only 0 and 1"):
        wilson([0.5])


def test_missing_values_are_left_out_in_pairs():
    random = np.random.default_rng(1)
    a_N, b_N = random.random(30), random.random(30)
    with_gaps_a, with_gaps_b = [None, *a_N, 0.5, float("nan")], [0.5, *b_N, None, None]
    assert bootstrap(with_gaps_a[:31]) == bootstrap(a_N)
    assert paired(with_gaps_a, with_gaps_b) == paired(a_N, b_N)
    assert paired(with_gaps_a, with_gaps_b).num_used == 30


def test_other_lengths_are_refused():
    with pytest.raises(ValueError, match="3 scores of one model and 2 of the other; give both of the same samples"):
        paired([0.1, 0.2, 0.3], [0.1, 0.2])
    with pytest.raises(AssertionError, match="finite"):
        bootstrap([0.1, float("inf")])


def test_the_same_call_gives_the_same_interval():
    x_N = np.random.default_rng(2).beta(2, 5, 76)
    np.random.default_rng(0).random(5)
    assert bootstrap(x_N) == bootstrap(list(x_N))
    other = bootstrap(x_N, seed=1)
    assert other != bootstrap(x_N)
    assert other[:3] == pytest.approx(bootstrap(x_N)[:3], abs=0.002)


def test_scaled_mirrored_and_shifted_scores():
    """The interval moves with the scores: in percent, as errors instead of hits, with b - a for a - b."""
    random = np.random.default_rng(3)
    a_N, b_N = random.beta(0.5, 3, 60), random.beta(0.6, 3, 60)
    mean, low, high, _ = bootstrap(a_N)
    assert high - mean > 1.1 * (mean - low)  # a long upper tail
    assert bootstrap(100 * a_N)[:3] == pytest.approx((100 * mean, 100 * low, 100 * high))
    assert bootstrap(1 - a_N)[:3] == pytest.approx((1 - mean, 1 - high, 1 - low))
    forth, back = paired(a_N, b_N), paired(b_N, a_N)
    assert back[:3] == pytest.approx((-forth.difference, -forth.high, -forth.low))
    assert (back.p_value, back.significant) == (forth.p_value, forth.significant)
    assert forth.difference == pytest.approx(a_N.mean() - b_N.mean())


def test_the_ends_by_the_definitions():
    """BCa as Efron defines it, by the jackknife and by the share of resampled means that are below the mean, with t of
    19 degrees of freedom; within 0.05 standard errors, where the bias correction moves the upper end by 0.12."""
    x_N = (np.arange(1, 21) / 20) ** 8
    resampled_R = np.random.default_rng(1).choice(x_N, (100_000, 20)).mean(1)
    left_out_N = (x_N.sum() - x_N) / 19
    off_N = left_out_N.mean() - left_out_N
    acceleration = (off_N**3).sum() / (6 * (off_N**2).sum() ** 1.5)
    bias = NormalDist().inv_cdf((resampled_R < x_N.mean()).mean())
    assert acceleration > 0.07 and bias > 0.05
    t = 2.093024 * np.sqrt(20 / 19)
    level = NormalDist().cdf(bias + (bias + t) / (1 - acceleration * (bias + t)))
    _, low, high, _ = np.mean([bootstrap(x_N, seed) for seed in range(10)], axis=0)
    tolerance = 0.05 * x_N.std() / np.sqrt(20)
    assert high == pytest.approx(np.quantile(resampled_R, level), abs=tolerance)
    assert low == pytest.approx(np.quantile(resampled_R, NormalDist().cdf(-t)), abs=tolerance)  # BCa's is further in


def test_of_many_samples_the_interval_is_the_normal_one():
    x_N = np.random.default_rng(4).beta(2, 5, 3000)
    mean, low, high, _ = bootstrap(x_N)
    half = 1.96 * x_N.std() / np.sqrt(3000)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.03 * half)


def test_students_t():
    """Quantiles from tables."""
    exact = {2: 4.302653, 4: 2.776445, 9: 2.262157, 19: 2.093024, 75: 1.992102, 499: 1.964729}
    for degrees, t in exact.items():
        assert student_t(degrees) == pytest.approx(t, rel=0.01 if degrees == 2 else 4e-4)
    assert student_t(19) == pytest.approx(2.093024, rel=1e-6)


def test_many_samples_take_bounded_memory(monkeypatch):
    """In chunks: the same interval as at once, in a tenth of the memory that all indices would take."""
    x_N = np.random.default_rng(5).beta(2, 5, 20_000)
    monkeypatch.setattr(intervals, "RESAMPLES", 1000)
    monkeypatch.setattr(intervals, "CHUNK_ELEMENTS", 1 << 18)
    tracemalloc.start()
    _, low, high, _ = bootstrap(x_N)
    assert paired(x_N, x_N[::-1]).p_value > 0.05
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 1000 * 20_000 / 10
    monkeypatch.setattr(intervals, "CHUNK_ELEMENTS", 1 << 24)
    assert bootstrap(x_N)[1:3] == pytest.approx((low, high), rel=1e-12)


def test_the_p_value_is_that_of_all_sign_flips():
    """Of 10 differences there are 1,024."""
    for shift in (0.0, 0.1, 0.3):
        d_N = np.random.default_rng(6).normal(shift, 0.3, 10)
        flipped = np.array(list(itertools.product((-1, 1), repeat=10))) @ d_N
        exact = (np.abs(flipped) >= abs(d_N.sum()) - 1e-12).mean()
        assert paired(d_N, np.zeros(10)).p_value == pytest.approx(exact, abs=0.015)
    assert paired([0.1, 0.2, 0.3, 0.7], [0.0] * 4).p_value == pytest.approx(
        2 / 16, abs=0.015
    )  # but for rounding, equal
    assert paired([1.0] * 30, [0.0] * 30).p_value == 1 / 10_001  # of 2 in 2 ** 30 none is drawn


def test_without_a_difference_5_percent_of_p_values_are_below_5_percent(fewer_resamples):
    random = np.random.default_rng(7)
    for n in (20, 76, 300):
        a_ND, b_ND = (random.beta(0.5, 3, (n, SETS)) * (random.random((n, SETS)) > 0.3) for _ in "ab")
        p_D = intervals._sign_flip(a_ND - b_ND, seed=0)
        assert 0.035 <= (p_D <= 0.05).mean() <= 0.065
        assert 0.45 <= (p_D <= 0.5).mean() <= 0.55


def equal_models(n: int) -> dict[str, intervals.Difference]:
    random = np.random.default_rng(n)
    a, b = ({str(i): random.beta(2, 5, n) for i in range(SETS)} for _ in "ab")
    return paired_all(a, b)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_of_fewer_than_six_no_difference_is_significant(n):
    """The interval alone leaves 0 out wherever all signs are equal, which is one of 2 ** (n - 1) sets."""
    found = equal_models(n).values()
    assert np.mean([f.low > 0 or f.high < 0 for f in found]) > 0.05
    assert not any(f.significant for f in found)
    assert not paired([1.0] * n, [0.0] * n).significant


def test_from_six_on_equal_models_differ_in_5_percent(fewer_resamples):
    for n in (6, 8, 20):
        assert np.mean([f.significant for f in equal_models(n).values()]) <= 0.06
    found = paired([1.0] * 6, [0.0] * 6)
    assert found.significant and found.p_value == pytest.approx(2 / 2**6, abs=0.01)


def test_neither_the_interval_nor_the_p_value_alone_makes_a_difference_significant():
    found = paired([1.0] * 5 + [0.0] * 100, [0.0] * 105)
    assert found.low > 0 and found.p_value > 0.05 and not found.significant
    found = paired([0.5, 0.4, 0.7, 0.6, 0.6, -0.4, 0.9, 0.8], [0.0] * 8)
    assert found.low < 0 and found.p_value < 0.05 and not found.significant


def test_a_difference_that_is_there_is_found_where_the_samples_are_shared():
    """Two models that differ by 0.02 on the same 500 questions: their own intervals overlap, that of the pairs is clear
    of 0."""
    random = np.random.default_rng(8)
    question_N = random.beta(2, 5, 500)
    a_N, b_N = (np.clip(question_N + random.normal(shift, 0.05, 500), 0, 1) for shift in (0.02, 0.0))
    assert bootstrap(a_N).low < bootstrap(b_N).high
    found = paired(a_N, b_N)
    assert found.significant and found.low > 0.005 and found.p_value < 0.001
    assert not paired(a_N, b_N[random.permutation(500)]).significant


def test_an_end_at_zero_is_zero_and_not_a_rounding_error_beside_it():
    """0.1 + 0.2 - 0.3 is not 0 in floating point; no interval may leave 0 out for that."""
    random = np.random.default_rng(1)
    for _ in range(30):
        a = random.choice([0.1, 0.2, 0.3, 0.7], 40)
        b = a.copy()
        b[:2] += [0.1, 0.2]
        low, high = paired(b, a)[1:3]
        assert low == 0 or abs(low) > 1e-6, low
        assert high > 0
