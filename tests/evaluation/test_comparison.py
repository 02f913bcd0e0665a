"""Models are compared over conversations: several answers of one make nothing more certain."""

import numpy as np

from logtrain.evaluation.comparison import by_row, compare
from logtrain.evaluation.intervals import bootstrap, wilson
from logtrain.evaluation.results import Comparison
from logtrain.evaluation.samples import SAMPLE_METRICS, Sample
from tests.support.samples import make_sample


def samples_of(score_NA: np.ndarray) -> list[Sample]:
    """A sample an answer, of A answers in each of N conversations, all of whose scores are `score_NA`'s."""
    return [
        make_sample(dict.fromkeys(SAMPLE_METRICS, float(score)), row=row, task=("even", "odd")[row % 2])
        for row, score_A in enumerate(score_NA)
        for score in score_A
    ]


def compared(a_NA: np.ndarray, b_NA: np.ndarray) -> Comparison:
    return compare({"a": samples_of(a_NA), "b": samples_of(b_NA)})


def test_repeated_answers_make_nothing_more_certain():
    """Ten equal answers in each of 20 conversations say as much as one: means, intervals, differences, in each task."""
    random = np.random.default_rng(9)
    a_N1, b_N1 = random.beta(2, 5, (2, 20, 1))
    once, repeated = (compared(np.repeat(a_N1, k, 1), np.repeat(b_N1, k, 1)) for k in (1, 8))
    assert once == repeated
    assert once["models"]["a"]["metrics"]["fuzzy"]["n"] == 20
    assert once["differences"][0]["tasks"]["odd"]["fuzzy"]["n"] == 10


def test_intervals_of_conversations_hold_the_true_mean(fewer_resamples):
    """50 conversations of 10 answers, which share how hard the conversation is."""
    random = np.random.default_rng(10)
    covered = {"conversations": [], "answers": []}
    for _ in range(150):
        samples = samples_of(random.beta(2, 2, (50, 1)) + random.normal(0, 0.15, (50, 10)))  # truth: 0.5
        for unit, scored in (("conversations", by_row(samples)), ("answers", samples)):
            _, low, high, _ = bootstrap([each.scores["fuzzy"] for each in scored])
            covered[unit].append(low <= 0.5 <= high)
    assert np.mean(covered["conversations"]) >= 0.92
    assert np.mean(covered["answers"]) <= 0.7


def test_a_rows_score_is_the_mean_of_the_answers_that_have_one():
    def sample(row: int, value: float | None) -> Sample:
        return make_sample(dict.fromkeys(SAMPLE_METRICS, 1.0) | {"json_valid": value, "fuzzy": value}, row=row)

    samples = [sample(4, None), sample(4, 0.25), sample(4, 0.75), sample(7, None), sample(9, 0.0)]
    metrics = compare({"a": samples})["models"]["a"]["metrics"]
    assert (metrics["fuzzy"]["mean"], metrics["fuzzy"]["n"]) == (0.25, 2)
    assert metrics["stopped"]["n"] == 3


def test_scores_of_0_and_1_have_wilsons_interval():
    """Not where a conversation's mean is in between, not the length, which 1 does not bound, and not differences."""
    ones_N1 = np.ones((30, 1))
    result = compared(ones_N1, ones_N1)
    metrics = result["models"]["a"]["metrics"]
    for name in ("exact_match", "json_valid", "stopped"):
        assert tuple(metrics[name].values()) == wilson([1.0] * 30)
    assert (metrics["length_ratio"]["low"], metrics["length_ratio"]["high"]) == (1.0, 1.0)
    assert result["differences"][0]["metrics"]["stopped"]["low"] == 0
    turns_N2 = np.tile([1.0, 0.0], (30, 1))
    assert compared(turns_N2, turns_N2)["models"]["a"]["metrics"]["stopped"]["low"] == 0.5
