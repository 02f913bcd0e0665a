"""The scores of an evaluation in words and figures, as a screen and a page show them."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from logtrain.evaluation.results import MetricDifference, MetricMean, ModelDifference, ModelScores, QuestionCounts
from logtrain.evaluation.samples import SAMPLE_METRICS
from logtrain.evaluation.scoring import CORPUS_METRICS

BOLD = (
    "Bold: 0 is outside the interval, and p, by the paired randomisation test, is at most 0.05; with fewer than 6 "
    "questions none can be."
)
MULTIPLE = (
    "Each interval and p is for one score, pair of models and task alone: of 20 differences between equal models one "
    "is expected to be bold, so decide which of them counts before you look."
)

T = TypeVar("T")


class Cell(NamedTuple):
    """One figure of a table, in words."""

    value: str
    interval: str = ""
    """The 95% interval's ends and, of a difference, its p-value."""
    bold: bool = False


class TableRow(NamedTuple):
    """A metric's title and its cells, one a column."""

    title: str
    cells: list[Cell]


def mean_rows(columns: Sequence[Mapping[str, MetricMean]]) -> list[TableRow]:
    """A row for each metric that any model has; a column is a model's "metrics", all of them or those of a task."""
    return rows_of(columns, lambda score: Cell(f"{score['mean']:.4f}", interval_text(score["low"], score["high"])))


def difference_rows(columns: Sequence[Mapping[str, MetricDifference]]) -> list[TableRow]:
    """A row for each metric that any difference has; a column is a difference's "metrics", all or those of a task."""

    def cell(score: MetricDifference) -> Cell:
        interval = interval_text(score["low"], score["high"], sign="+")
        if score["p"] is not None:
            interval += f", p {score['p']:.4f}"
        return Cell(f"{score['difference']:+.4f}", interval, score["significant"])

    return rows_of(columns, cell)


def rows_of(columns: Sequence[Mapping[str, T]], cell: Callable[[T], Cell]) -> list[TableRow]:
    """A row for each metric that any column has, in one order; a column that lacks it has an empty cell."""
    return [
        TableRow(title, [cell(column[metric]) if metric in column else Cell("") for column in columns])
        for metric, title in SAMPLE_METRICS.items()
        if any(metric in column for column in columns)
    ]


def corpus_rows(models: Sequence[ModelScores]) -> list[TableRow]:
    """A row for each metric that exists only of all answers together; it has no interval."""

    def cell(value: float | None) -> Cell:
        return Cell("" if value is None else f"{value:.4f}")

    return [
        TableRow(title, [cell(model["corpus"][metric]) for model in models]) for metric, title in CORPUS_METRICS.items()
    ]


def interval_text(low: float | None, high: float | None, sign: str = "") -> str:
    """`sign`: "+" to write a plus before a number above 0."""
    return "" if low is None or high is None else f"{low:{sign}.4f} to {high:{sign}.4f}"


def difference_title(difference: ModelDifference) -> str:
    """A difference as it is written: the second model - the first."""
    a, b = difference["models"]
    return f"{b} - {a}"


def remarks(data: QuestionCounts) -> list[str]:
    """What is to be known of the questions: a line for each reason why some were left out, and one if several are of
    one row.
    """
    found = [f"Left out: {number:,} {why}" for why, number in left_out(data).items()]
    if data["questions"] > data["rows"]:
        found.append(
            f"{data['questions']:,} answers in {data['rows']:,} conversations: a conversation's score is the mean over "
            "its answers. Means, intervals and differences are over conversations, corpus BLEU and chrF over answers."
        )
    return found


def left_out(data: QuestionCounts) -> dict[str, int]:
    """Why, and how many, of what is not among the questions; only reasons that occurred."""
    counts = {"too long": len(data["too_long"]), **data["left_out"]}
    return {why: number for why, number in counts.items() if number}
