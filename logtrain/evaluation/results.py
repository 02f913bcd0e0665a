"""What scores.json holds, with types.

    data          the questions: file, its sha256, how many, of how many rows, what was left out
    models        NAME -> {metrics, corpus, tasks, path, perplexity}
    differences   [{models: [A, B], metrics, tasks}]    B - A, over the same questions

Nothing in it depends on when or how fast it was made.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import orjson

from logtrain.core.atomic import write_file
from logtrain.data.manifest import sha256
from logtrain.evaluation.question_set import QuestionSet


class MetricMean(TypedDict):
    """One metric's mean over the rows, with its interval: Wilson's where scores are yes or no, else the bootstrap's."""

    mean: float
    low: float | None
    """End of the 95% interval; None below two rows."""
    high: float | None
    n: int
    """Rows that have a score."""


class MetricDifference(TypedDict):
    """The mean difference of one metric of two models over the same rows."""

    difference: float
    low: float | None
    """End of the 95% interval; None below two rows."""
    high: float | None
    n: int
    """Rows of which both models have a score."""
    significant: bool
    """Whether 0 is outside the interval and p is at most 0.05."""
    p: float | None
    """p-value of the paired randomisation test; None below two rows."""


class ModelScores(TypedDict):
    """What the samples say of a model."""

    metrics: dict[str, MetricMean]
    corpus: dict[str, float | None]
    """Metrics of all answers together: see `scoring.corpus_scores`."""
    tasks: dict[str, dict[str, MetricMean]]
    """`metrics` of each task alone, where there are several."""


class ModelDifference(TypedDict):
    """What the samples say of two models."""

    models: list[str]
    """[A, B]: the differences are B - A."""
    metrics: dict[str, MetricDifference]
    tasks: dict[str, dict[str, MetricDifference]]


class Comparison(TypedDict):
    """What the samples say of all models."""

    models: dict[str, ModelScores]
    """By the model's name."""
    differences: list[ModelDifference]
    """One of every two models."""


class Perplexity(TypedDict):
    """How well a model predicts a file; sums are over its predicted tokens."""

    perplexity: float
    loss: float
    """Nats a token."""
    bits_per_byte: float
    """Bytes are those of the text that is predicted, in UTF-8."""
    tokens: int
    sha256: str
    """Hash of the file."""
    model_sha256: str


class ModelResult(ModelScores):
    """All that is found of a model."""

    path: str
    perplexity: dict[str, Perplexity]
    """By the file's name in the config."""


class QuestionCounts(TypedDict):
    """What was asked, and what was left out."""

    path: str
    sha256: str
    questions: int
    """Questions that were asked."""
    rows: int
    """Rows of the test set that these are of: conversations."""
    left_out: dict[str, int]
    """Why, and how many rows."""
    too_long: list[str]
    """What was wrong with each question that was too long."""


class Result(TypedDict):
    """The whole of scores.json."""

    data: QuestionCounts
    models: dict[str, ModelResult]
    differences: list[ModelDifference]


def make_result(
    question_set: QuestionSet,
    comparison: Comparison,
    paths: Mapping[str, str],
    perplexities: Mapping[str, dict[str, Perplexity]],
) -> Result:
    """What scores.json is to hold. `paths` and `perplexities`: of each model, by its name. Raises OSError where the
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
            name: {**scores, "path": str(Path(paths[name])), "perplexity": perplexities[name]}
            for name, scores in comparison["models"].items()
        },
        "differences": comparison["differences"],
    }


def write_result(file: Path, result: Result) -> None:
    """As JSON, whole or not at all. Raises OSError."""
    write_file(file, orjson.dumps(result, option=orjson.OPT_INDENT_2))
