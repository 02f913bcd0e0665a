"""Compares models by their samples: every score, and every difference between two models, with its interval.

Means are over rows of the test set, not over answers, because the answers of one conversation (--answers all) are
alike. Taken for independent, those of 50 conversations of 10 turns got intervals of which only 67% held the true mean.
So the score of a row is the mean over its answers, and everything but `corpus` is computed over rows.
"""

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from logtrain.evaluation.intervals import bootstrap_all, paired_all, wilson
from logtrain.evaluation.results import Comparison, MetricDifference, MetricMean, ModelDifference, ModelScores
from logtrain.evaluation.samples import SAMPLE_METRICS, Sample
from logtrain.evaluation.scoring import Scores, corpus_scores

YES_OR_NO = ("exact_match", "json_valid", "stopped")


class RowScores(NamedTuple):
    """The scores of a row of the test set."""

    task: str
    """Task of the row's questions."""
    scores: Scores
    """Mean of each metric over the row's answers that have a score; None where no answer has one."""


def compare(samples: Mapping[str, Sequence[Sample]]) -> Comparison:
    """The scores of all models, and the difference of every two of them. `samples`: those of each model by its name, in
    one order. If there are several tasks, each is also compared alone; all answers of a row are of one task.
    """
    rows = {name: by_row(of_model) for name, of_model in samples.items()}
    present = {sample.question.task for of_model in samples.values() for sample in of_model}
    tasks = sorted(present) if len(present) > 1 else []
    return {
        "models": {name: scores_of(of_model, rows[name], tasks) for name, of_model in samples.items()},
        "differences": [
            difference_of(names, rows[names[0]], rows[names[1]], tasks) for names in itertools.combinations(samples, 2)
        ],
    }


def scores_of(samples: Sequence[Sample], rows: Sequence[RowScores], tasks: Sequence[str]) -> ModelScores:
    """The scores of one model. `rows`: the scores of the samples by row. `tasks`: the tasks to score alone."""
    return {
        "metrics": means_of(rows),
        "corpus": corpus_scores([sample.pair for sample in samples]),
        "tasks": {task: means_of(of_task(rows, task)) for task in tasks},
    }


def difference_of(
    names: tuple[str, str], a: Sequence[RowScores], b: Sequence[RowScores], tasks: Sequence[str]
) -> ModelDifference:
    """The differences b - a of two models. `a`, `b`: the rows of the models `names`. `tasks`: the tasks to compare
    alone.
    """
    return {
        "models": list(names),
        "metrics": differences_of(a, b),
        "tasks": {task: differences_of(of_task(a, task), of_task(b, task)) for task in tasks},
    }


def by_row(samples: Sequence[Sample]) -> list[RowScores]:
    """The scores of each row, in the order of the rows' first answers."""
    of_rows: dict[int, list[Sample]] = {}
    for sample in samples:
        of_rows.setdefault(sample.question.row, []).append(sample)

    def mean(metric: str, of_row: list[Sample]) -> float | None:
        values = [value for sample in of_row if (value := sample.scores[metric]) is not None]
        return fmean(values) if values else None

    return [
        RowScores(of_row[0].question.task, {metric: mean(metric, of_row) for metric in SAMPLE_METRICS})
        for of_row in of_rows.values()
    ]


def of_task(rows: Sequence[RowScores], task: str) -> list[RowScores]:
    """The rows of one task."""
    return [row for row in rows if row.task == task]


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
    return {
        metric: {
            "difference": found.difference,
            "low": found.low,
            "high": found.high,
            "n": found.num_used,
            "significant": found.significant,
            "p": found.p_value,
        }
        for metric, found in paired_all(columns(b), columns(a)).items()
        if found.difference is not None
    }


def columns(rows: Sequence[RowScores]) -> dict[str, list[float | None]]:
    """The scores of all rows, by metric."""
    return {metric: [row.scores[metric] for row in rows] for metric in SAMPLE_METRICS}
