"""The scores of an evaluation as the texts of tables, for a screen and a page."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from logtrain.evaluation.flips import flips_line
from logtrain.evaluation.results import (
    AnsweredBy,
    MetricDifference,
    MetricMean,
    ModelDifference,
    ModelScores,
    QuestionCounts,
    Result,
)
from logtrain.evaluation.samples import SAMPLE_METRICS
from logtrain.evaluation.scoring import CORPUS_METRICS, METRICS, PUBLISHED
from logtrain.evaluation.tasks import SET_METRICS

BOLD = (
    "Bold: 0 is outside the interval, and p, by the paired randomisation test, is at most 0.05; with fewer than 6 "
    "questions none can be."
)
MULTIPLE = (
    "Each interval and p is for one score, pair of models and task alone: of 20 differences between equal models one "
    "is expected to be bold, so decide which of them counts before you look."
)

TITLES = SET_METRICS | SAMPLE_METRICS
"""Titles of all scores and figures, by their names: first those that the tasks are for."""

T = TypeVar("T")


class Cell(NamedTuple):
    """One cell of a table."""

    value: str
    """The figure, "" for none."""
    interval: str = ""
    """Ends of the 95% interval and, for a difference, its p-value."""
    bold: bool = False
    """Whether the difference is significant."""


class TableRow(NamedTuple):
    """The row of one metric."""

    title: str
    """Title of the metric."""
    cells: list[Cell]
    """A cell for each column."""


def mean_rows(columns: Sequence[Mapping[str, MetricMean]]) -> list[TableRow]:
    """A row for each metric that any model has. `columns`: the means of each model, over all rows or a task's."""

    def cell(score: MetricMean) -> Cell:
        interval = interval_text(score["low"], score["high"])
        majority = f"majority {score['majority']:.4f}" if "majority" in score else ""
        return Cell(f"{score['mean']:.4f}", ", ".join(filter(None, (interval, majority))))

    return rows_of(columns, cell)


def difference_rows(columns: Sequence[Mapping[str, MetricDifference]]) -> list[TableRow]:
    """A row for each metric that any pair of models has. `columns`: the differences of each pair, over all rows or a
    task's.
    """

    def cell(score: MetricDifference) -> Cell:
        interval = interval_text(score["low"], score["high"], sign="+")
        if score["p"] is not None:
            interval += f", {p_text(score['p'])}"
        return Cell(f"{score['difference']:+.4f}", interval, score["significant"])

    return rows_of(columns, cell)


def rows_of(columns: Sequence[Mapping[str, T]], cell: Callable[[T], Cell]) -> list[TableRow]:
    """A row for each metric that any column has, in one order; a column without it has an empty cell."""
    return [
        TableRow(title, [cell(column[metric]) if metric in column else Cell("") for column in columns])
        for metric, title in TITLES.items()
        if any(metric in column for column in columns)
    ]


def corpus_rows(models: Sequence[ModelScores]) -> list[TableRow]:
    """A row for each metric of all answers together, without intervals."""

    def cell(value: float | None) -> Cell:
        return Cell("" if value is None else f"{value:.4f}")

    return [
        TableRow(title, [cell(model["corpus"][metric]) for model in models]) for metric, title in CORPUS_METRICS.items()
    ]


def interval_text(low: float | None, high: float | None, sign: str = "") -> str:
    """The ends of an interval, "" where there is none. `sign`: "+" to write a plus before a positive number."""
    return "" if low is None or high is None else f"{low:{sign}.4f} to {high:{sign}.4f}"


def p_text(p: float) -> str:
    """A p-value as it is published."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def difference_title(difference: ModelDifference) -> str:
    """The title of a difference: the second model - the first."""
    a, b = difference["models"]
    return f"{b} - {a}"


def flip_lines(differences: Sequence[ModelDifference]) -> list[str]:
    """A line for each pair of models and task with answers that are right of one of the two alone."""
    return [
        f"{difference_title(difference)}, {flips_line(task, flips)}"
        for difference in differences
        for task, flips in difference["flips"].items()
    ]


def remarks(result: Result) -> list[str]:
    """Remarks on an evaluation: a line for each reason why questions were left out, one if several are of one row, one
    if references are beyond a metric, and one for each who answered.
    """
    data, models = result["data"], result["models"]
    found = [f"Left out: {number:,} {why}" for why, number in left_out(data).items()]
    if data["questions"] > data["rows"]:
        found.append(
            f"{data['questions']:,} answers in {data['rows']:,} conversations: a conversation's score is the mean over "
            "its answers. Means, intervals and differences are over conversations, corpus BLEU and chrF over answers."
        )
    found += dict.fromkeys(answerer(model["answered_by"]) for model in models.values())
    if beyond := beyond_metrics(result):
        counts = ", ".join(f"{METRICS[metric]} for {number:,}" for metric, number in beyond.items())
        found.append(
            f"No score, of {data['rows']:,}: {counts}. BLEU needs a reference of 4 tokens, ROUGE one of Latin letters "
            "and digits, else every answer would have 0; Fuzzy and chrF are for any text."
        )
    return found


def answerer(by: AnsweredBy) -> str:
    """Who answered, and how, in a sentence."""
    sampling = by["sampling"]
    drawn = f"temperature {sampling['temperature']:g}, at most {sampling['max_new_tokens']:,} tokens"
    if by["backend"] == "local":
        return f"Answered by logtrain in {by['dtype']}: {drawn}."
    told = " ".join(f"{key} {value}" for key, value in (by["server_model"] or {}).items())
    told = told or "which says nothing of its model"
    return f"Answered by the server {by['base_url']} ({told}), sent {by['prompts']}: {drawn}."


def beyond_metrics(result: Result) -> dict[str, int]:
    """How many rows have no score by BLEU or ROUGE, which depends on the references alone; only metrics of which there
    are any.
    """
    metrics, rows = next(iter(result["models"].values()))["metrics"], result["data"]["rows"]
    counts = {metric: rows - (metrics[metric]["n"] if metric in metrics else 0) for metric in PUBLISHED}
    return {metric: number for metric, number in counts.items() if number}


def left_out(data: QuestionCounts) -> dict[str, int]:
    """How many questions or rows were left out, by the reason; only reasons that occurred."""
    counts = {"too long": len(data["too_long"]), **data["left_out"]}
    return {why: number for why, number in counts.items() if number}
