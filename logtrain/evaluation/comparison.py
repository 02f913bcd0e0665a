"""What answers say of the models that gave them: every score with its interval, every difference with its own.

scores.json

    data          the questions: file, its sha256, how many, of how many rows
    models        NAME -> {metrics, corpus, tasks, perplexity, ...}
    differences   [{models: [A, B], metrics, tasks}]    B less A, over the same questions

A metric is {mean, low, high, n}, with Wilson's interval where scores are yes or no, else the bootstrap's; a difference
{difference, low, high, n, significant, p}. Nothing in it depends on when or how fast it was made.

n counts rows, not answers. The answers of one conversation (--answers all) are alike: taken for independent, those of
50 conversations of 10 turns got intervals of which 67% held the true mean. So a row's score is the mean over its
answers, and everything but `corpus` is computed over rows.
"""

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from logtrain.evaluation.intervals import bootstrap_all, paired_all, wilson
from logtrain.evaluation.scoring import CORPUS_METRICS, METRICS, Scores, corpus_scores

TITLES = {**METRICS, "stopped": "Stopped"}
"""Of every score of a sample. stopped: 1 where the answer ended by itself, 0 where it was cut."""

YES_OR_NO = ("exact_match", "json_valid", "stopped")

PUBLISHED = list(METRICS)[:6]  # the metrics of the published table

BOLD = (
    "Bold: 0 is outside the interval, and p, by the paired randomisation test, is at most 0.05; with fewer than 6 "
    "questions none can be."
)
MULTIPLE = (
    "Each interval and p is for one score, pair of models and task alone: of 20 differences between equal models one "
    "is expected to be bold, so decide which of them counts before you look."
)


def compare(
    scores: Mapping[str, Sequence[Scores]],
    pairs: Mapping[str, Sequence[tuple[str, str]]],
    rows: Sequence[int],
    tasks: Sequence[str],
) -> dict:
    """{"models", "differences"} of models' scores of the same answers; `pairs`: (prediction, reference) of these.

    `rows`: which row of the test set each answer is of. `tasks`: of which kind; all of a row are of one. Each kind is
    also looked at alone, where there are several.
    """
    of_rows = {name: by_row(samples, rows) for name, samples in scores.items()}
    task_of = dict(zip(rows, tasks, strict=True))
    kinds = sorted(set(tasks)) if len(set(tasks)) > 1 else []

    def of_kind(name: str, kind: str) -> list[Scores]:
        return [row for row, task in zip(of_rows[name], task_of.values(), strict=True) if task == kind]

    models = {
        name: {
            "metrics": metrics_of(of_rows[name]),
            "corpus": corpus_scores(pairs[name]),
            "tasks": {kind: metrics_of(of_kind(name, kind)) for kind in kinds},
        }
        for name in scores
    }
    differences = [
        {
            "models": [a, b],
            "metrics": differences_of(of_rows[a], of_rows[b]),
            "tasks": {kind: differences_of(of_kind(a, kind), of_kind(b, kind)) for kind in kinds},
        }
        for a, b in itertools.combinations(scores, 2)
    ]
    return {"models": models, "differences": differences}


def by_row(samples: Sequence[Scores], rows: Sequence[int]) -> list[Scores]:
    """The scores of each row, in the order of the first answers: means over its answers that have one, else None."""
    answers: dict[int, list[Scores]] = {}
    for row, sample in zip(rows, samples, strict=True):
        answers.setdefault(row, []).append(sample)

    def mean(name: str, of_row: list[Scores]) -> float | None:
        values = [sample[name] for sample in of_row if sample[name] is not None]
        return fmean(values) if values else None

    return [{name: mean(name, of_row) for name in TITLES} for of_row in answers.values()]


def metrics_of(rows: Sequence[Scores]) -> dict[str, dict]:
    means = bootstrap_all(columns(rows))
    for name, values in columns(rows).items():
        if name in YES_OR_NO and set(values) <= {0, 1, None}:  # not means of several answers
            means[name] = wilson(values)
    return {
        name: {"mean": mean, "low": low, "high": high, "n": used}
        for name, (mean, low, high, used) in means.items()
        if used
    }


def differences_of(a: Sequence[Scores], b: Sequence[Scores]) -> dict[str, dict]:
    """b less a."""
    return {
        name: {"difference": difference, "low": low, "high": high, "n": used, "significant": significant, "p": p}
        for name, (difference, low, high, used, significant, p) in paired_all(columns(b), columns(a)).items()
        if used
    }


def columns(rows: Sequence[Scores]) -> dict[str, list[float | None]]:
    return {name: [row[name] for row in rows] for name in TITLES}


# ---- in words, for a screen and for a page


class Cell(NamedTuple):
    value: str
    interval: str = ""
    bold: bool = False


def table(columns: Sequence[Mapping[str, dict]]) -> list[tuple[str, list[Cell]]]:
    """(title, cells) of each score that any column has; a column: "metrics" or one of "tasks" of a model or a
    difference."""
    return [
        (title, [cell(column.get(name)) for column in columns])
        for name, title in TITLES.items()
        if any(name in column for column in columns)
    ]


def cell(score: dict | None) -> Cell:
    if score is None:
        return Cell("")
    value, sign = (score["difference"], "+") if "difference" in score else (score["mean"], "")
    interval = "" if score["low"] is None else f"{score['low']:{sign}.4f} to {score['high']:{sign}.4f}"
    if score.get("p") is not None:
        interval += f", p {score['p']:.4f}"
    return Cell(f"{value:{sign}.4f}", interval, score.get("significant", False))


def corpus_table(models: Mapping[str, dict]) -> list[tuple[str, list[Cell]]]:
    return [
        (title, [Cell(f"{model['corpus'][name]:.4f}") for model in models.values()])
        for name, title in CORPUS_METRICS.items()
    ]


def remarks(data: Mapping) -> list[str]:
    """What is to be known of the questions, as they are in scores.json: a line for each kind that was left out, and one
    if several are of one row."""
    found = [f"Left out: {number:,} {what}" for what, number in left_out(data).items()]
    if data["questions"] > data["rows"]:
        found.append(
            f"{data['questions']:,} answers in {data['rows']:,} conversations: a conversation's score is the mean over "
            "its answers. Means, intervals and differences are over conversations, corpus BLEU and chrF over answers."
        )
    return found


def left_out(data: Mapping) -> dict[str, int]:
    """Why -> how many, of what is not among the questions: "too_long", and what "left_out" has, if it is there."""
    counts = {"too long": len(data["too_long"])} | data.get("left_out", {})
    return {why: number for why, number in counts.items() if number}
