"""The content of scores.json, with types; the file has a hash over all of it beside.

    data          the questions: their file and its SHA-256, their number, that of their rows, and those left out
    models        NAME -> {metrics, corpus, tasks, groups, path, answered_by, perplexity}
    differences   [{models: [A, B], metrics, tasks, groups, flips}]    B - A, over the same questions

Nothing in it depends on the time or the speed of the evaluation.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import orjson

from logtrain.core.atomic import write_file
from logtrain.core.origin import sealed_in
from logtrain.data.manifest import sha256
from logtrain.evaluation.flips import Flips
from logtrain.evaluation.question_set import QuestionSet


class MetricMean(TypedDict):
    """The mean of one metric over the rows, with its interval: Wilson's for scores of 0 and 1, else the bootstrap's."""

    mean: float
    """Mean score."""
    low: float | None
    """Lower end of the 95% interval; None for the bootstrap of less than two rows."""
    high: float | None
    """Upper end of the 95% interval; None where `low` is."""
    n: int
    """Rows that have a score; answers, of a figure of a set."""
    clusters: NotRequired[int]
    """Of a figure of a set: the clusters of alike answers by which the interval goes."""
    majority: NotRequired[float]
    """Of a task with labels: the figure that the most frequent label as every answer has."""


class MetricDifference(TypedDict):
    """The mean difference of one metric of two models over the same rows."""

    difference: float
    """Mean of B - A."""
    low: float | None
    """Lower end of the 95% interval; None for less than two rows."""
    high: float | None
    """Upper end of the 95% interval; None where `low` is."""
    n: int
    """Rows of which both models have a score; clusters, of a figure of a set."""
    significant: bool
    """Whether 0 is outside the interval and p is at most 0.05."""
    p: float | None
    """The p-value of the paired randomisation test; None for less than two rows."""


class ModelScores(TypedDict):
    """The scores of a model."""

    metrics: dict[str, MetricMean]
    """Means by the metric's name."""
    corpus: dict[str, float | None]
    """Metrics of all answers together, as `scoring.corpus_scores` gives them."""
    tasks: dict[str, dict[str, MetricMean]]
    """Means of each task alone, if there are several tasks, by the task's name."""
    groups: dict[str, dict[str, MetricMean]]
    """Means of the rows of groups that were trained on (seen), and not (unseen), alone, where rows have groups."""


class ModelDifference(TypedDict):
    """The differences of two models' scores."""

    models: list[str]
    """[A, B]: the differences are B - A."""
    metrics: dict[str, MetricDifference]
    """Differences by the metric's name."""
    tasks: dict[str, dict[str, MetricDifference]]
    """Differences of each task alone, if there are several tasks, by the task's name."""
    groups: dict[str, dict[str, MetricDifference]]
    """Differences of seen and unseen groups alone, where rows have groups."""
    flips: dict[str, Flips]
    """The answers that are right of one of the two alone, by the task that they are scored as; of tasks with any."""


class Comparison(TypedDict):
    """The scores of all models, and their differences."""

    models: dict[str, ModelScores]
    """Scores by the model's name."""
    differences: list[ModelDifference]
    """An entry for every two models."""


class Perplexity(TypedDict):
    """How well a model predicts a file."""

    perplexity: float
    """Exponential of the loss."""
    loss: float
    """Mean loss of the predicted tokens, in nats."""
    bits_per_byte: float
    """Summed loss in bits over the bytes of the predicted text."""
    tokens: int
    """Number of the predicted tokens."""
    sha256: str
    """Hash of the file."""
    model_sha256: str
    """Hash of the model, as of `ModelFiles`."""


class AnsweredBy(TypedDict):
    """Who answered, and how."""

    backend: str
    """local: this program. openai: a server that speaks OpenAI's API."""
    dtype: str | None
    """Precision of the computation; None for a server, which does not tell."""
    base_url: str
    """Address of the server, "" without one."""
    prompts: str
    """What the server was sent: ids or messages; "" without one."""
    server_model: dict[str, Any] | None
    """What the server said of its model at the end; None without a server, or if it said nothing."""
    sampling: dict[str, Any]
    """How tokens were drawn, and the most of an answer."""


class ModelResult(ModelScores):
    """The scores and perplexities of a model."""

    answered_by: AnsweredBy
    """Who answered."""

    path: str
    """Folder of the model."""
    perplexity: dict[str, Perplexity]
    """Perplexities by the file's name in the config."""


class QuestionCounts(TypedDict):
    """The questions that were asked, and those that were left out."""

    path: str
    """File of the test set."""
    sha256: str
    """Hash of the file."""
    questions: int
    """Number of questions that were asked."""
    rows: int
    """Number of rows (conversations) that the questions are from."""
    left_out: dict[str, int]
    """Number of rows that were left out, by the reason."""
    too_long: list[str]
    """An error's text for each question that was too long."""


class Result(TypedDict):
    """The whole of scores.json."""

    data: QuestionCounts
    """The questions."""
    models: dict[str, ModelResult]
    """Results by the model's name."""
    differences: list[ModelDifference]
    """An entry for every two models."""


def make_result(
    question_set: QuestionSet,
    comparison: Comparison,
    paths: Mapping[str, str],
    perplexities: Mapping[str, dict[str, Perplexity]],
    answered_by: Mapping[str, AnsweredBy],
) -> Result:
    """The content of scores.json. `paths`, `perplexities`, `answered_by`: by the model's name. Raises OSError if the
    test set can no longer be read.
    """
    numbers = question_set.numbers
    return {
        "data": {
            "path": os.path.abspath(question_set.path),
            "sha256": sha256(Path(question_set.path)),
            "questions": len(numbers),
            "rows": len({question_set.questions[number].row for number in numbers}),
            "left_out": {"bad rows": question_set.num_bad_rows},
            "too_long": list(question_set.too_long.values()),
        },
        "models": {
            name: {
                **scores,
                "path": str(Path(paths[name])),
                "answered_by": answered_by[name],
                "perplexity": perplexities[name],
            }
            for name, scores in comparison["models"].items()
        },
        "differences": comparison["differences"],
    }


def write_result(file: Path, result: Result) -> None:
    """Write a result as sealed JSON, whole or not at all. Raises OSError."""
    facts = orjson.loads(orjson.dumps(result))  # what is not finite is null, as JSON has it
    write_file(file, sealed_in(file, "scores", facts))
