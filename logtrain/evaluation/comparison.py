"""Compares models by their samples: every score, and every difference between two models, with its interval.

Means are over rows of the test set, not over answers, because the answers of one conversation (--answers all) are
alike. Taken for independent, those of 50 conversations of 10 turns got intervals of which only 67% held the true mean.
So the score of a row is the mean over its answers, and everything but `corpus` and the figures of sets, of which
clusters of alike answers are drawn (clusters.py), is computed over rows.
"""

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from logtrain.evaluation.clusters import figure_differences, figure_intervals
from logtrain.evaluation.flips import flips_of
from logtrain.evaluation.intervals import Difference, bootstrap_all, paired_all, wilson
from logtrain.evaluation.results import Comparison, MetricDifference, MetricMean, ModelDifference, ModelScores
from logtrain.evaluation.samples import SAMPLE_METRICS, Sample
from logtrain.evaluation.scoring import Scores, corpus_scores
from logtrain.evaluation.tasks import majority_figures, tallies

YES_OR_NO = ("exact_match", "json_valid", "stopped", "logqa_exact", "logqa_unread", "rca_solved", "rca_unread")
SEEN, UNSEEN = "seen", "unseen"  # groups of rows that models were, and were not, trained on


class RowScores(NamedTuple):
    """The scores of a row of the test set."""

    task: str
    """Task of the row's questions."""
    scores: Scores
    """Mean of each metric over the row's answers that have a score; None where no answer has one."""


def compare(samples: Mapping[str, Sequence[Sample]]) -> Comparison:
    """The scores of all models, and the difference of every two of them. `samples`: those of each model by its name, in
    one order. If there are several tasks, each is also compared alone; all answers of a row are of one task. So are
    seen and unseen groups, where rows have groups.
    """
    parts = Parts(next(iter(samples.values())))
    return {
        "models": {name: scores_of(of_model, parts) for name, of_model in samples.items()},
        "differences": [
            difference_of(names, samples[names[0]], samples[names[1]], parts)
            for names in itertools.combinations(samples, 2)
        ],
    }


class Parts:
    """The parts of a set that are compared alone. tasks, groups: the numbers of the samples of each, by its name."""

    def __init__(self, samples: Sequence[Sample]):
        """`samples`: those of any model."""
        self.tasks = numbers_by([sample.question.task for sample in samples])
        self.groups = numbers_by([{None: "", False: SEEN, True: UNSEEN}[sample.is_unseen] for sample in samples])
        if len(self.tasks) < 2:
            self.tasks = {}
        self.groups.pop("", None)


def numbers_by(names: Sequence[str]) -> dict[str, list[int]]:
    """The places at which each name stands, by the name in their order."""
    return {name: [i for i, each in enumerate(names) if each == name] for name in sorted(set(names))}


def scores_of(samples: Sequence[Sample], parts: Parts) -> ModelScores:
    """The scores of one model."""
    return {
        "metrics": metrics_of(samples),
        "corpus": corpus_scores([sample.pair for sample in samples]),
        "tasks": {name: metrics_of([samples[i] for i in part]) for name, part in parts.tasks.items()},
        "groups": {name: metrics_of([samples[i] for i in part]) for name, part in parts.groups.items()},
    }


def difference_of(names: tuple[str, str], a: Sequence[Sample], b: Sequence[Sample], parts: Parts) -> ModelDifference:
    """The differences b - a of two models. `a`, `b`: the samples of the models `names`."""

    def of_part(part: Sequence[int]) -> dict[str, MetricDifference]:
        return metric_differences([a[i] for i in part], [b[i] for i in part])

    return {
        "models": list(names),
        "metrics": metric_differences(a, b),
        "tasks": {name: of_part(part) for name, part in parts.tasks.items()},
        "groups": {name: of_part(part) for name, part in parts.groups.items()},
        "flips": flips_of(a, b),
    }


def metrics_of(samples: Sequence[Sample]) -> dict[str, MetricMean]:
    """The mean of each score over rows, and each figure of the set, with its interval."""
    outcomes = [sample.outcome for sample in samples]
    majority = majority_figures(outcomes)
    found = means_of(by_row(samples))
    for task, tally in tallies(outcomes).items():
        num_rows = sum(outcome.task == task for outcome in outcomes)
        for name, mean in figure_intervals(tally).items():
            assert mean.mean is not None
            figure: MetricMean = {"mean": mean.mean, "low": mean.low, "high": mean.high, "n": num_rows}
            found[name] = {**figure, "clusters": mean.num_used}
            if name in majority:
                found[name]["majority"] = majority[name]
    return found


def metric_differences(a: Sequence[Sample], b: Sequence[Sample]) -> dict[str, MetricDifference]:
    """The difference b - a of each mean over rows and of each figure of a set, over the same questions."""
    found = differences_of(by_row(a), by_row(b))
    outcomes_a, outcomes_b = ([sample.outcome for sample in samples] for samples in (a, b))
    of_a, of_b = tallies(outcomes_a, outcomes_b), tallies(outcomes_b, outcomes_a)
    for task, tally in of_b.items():
        found |= {name: as_json(each) for name, each in figure_differences(tally, of_a[task]).items()}
    return found


def by_row(samples: Sequence[Sample]) -> list[RowScores]:
    """The scores of each row, in the order of the rows' first answers."""
    of_rows: dict[int, list[Sample]] = {}
    for sample in samples:
        of_rows.setdefault(sample.question.row, []).append(sample)

    def mean(metric: str, of_row: list[Sample]) -> float | None:
        values = [value for sample in of_row if (value := sample.scores.get(metric)) is not None]
        return fmean(values) if values else None

    return [
        RowScores(of_row[0].question.task, {metric: mean(metric, of_row) for metric in SAMPLE_METRICS})
        for of_row in of_rows.values()
    ]


def means_of(rows: Sequence[RowScores]) -> dict[str, MetricMean]:
    """The mean of each metric of which any row has a score, with its interval."""
    means = bootstrap_all(columns(rows))
    for metric, values in columns(rows).items():
        if metric in YES_OR_NO and set(values) <= {0, 1, None}:  # no row is a mean of several answers
            means[metric] = wilson(values)
    return {
        metric: {"mean": found.mean, "low": found.low, "high": found.high, "n": found.num_used}
        for metric, found in means.items()
        if found.mean is not None
    }


def differences_of(a: Sequence[RowScores], b: Sequence[RowScores]) -> dict[str, MetricDifference]:
    """The mean difference b - a of each metric over the same rows, with its interval."""
    found = paired_all(columns(b), columns(a))
    return {metric: as_json(each) for metric, each in found.items() if each.difference is not None}


def as_json(found: Difference) -> MetricDifference:
    """A difference as scores.json has it."""
    assert found.difference is not None
    return {
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "n": found.num_used,
        "significant": found.significant,
        "p": found.p_value,
    }


def columns(rows: Sequence[RowScores]) -> dict[str, list[float | None]]:
    """The scores of all rows, by metric."""
    return {metric: [row.scores[metric] for row in rows] for metric in SAMPLE_METRICS}
