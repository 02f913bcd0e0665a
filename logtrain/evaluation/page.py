"""The page of an evaluation: compare.html, a single file to read, send and print, and compare.png, its chart alone."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from logtrain.core.atomic import write_file
from logtrain.data.questions import Question
from logtrain.evaluation.chart import draw, png_bytes, svg_bytes
from logtrain.evaluation.comparison import SEEN, UNSEEN
from logtrain.evaluation.results import Result
from logtrain.evaluation.samples import SAMPLE_METRICS, Sample
from logtrain.evaluation.score_table import (
    BOLD,
    MULTIPLE,
    TableRow,
    corpus_rows,
    difference_rows,
    difference_title,
    flip_lines,
    mean_rows,
    remarks,
)
from logtrain.evaluation.scoring import PUBLISHED

TEMPLATE = Path(__file__).with_name("compare.html.jinja")
SHOWN = 10  # samples under each heading
SHOWN_CHARS = 1200  # characters of a text that are shown; the rest is behind a click
RANKED_BY = ("rougeL", "fuzzy")  # the metrics by which answers are the best and the worst; all have the last


class TaskTables(NamedTuple):
    """The tables of one task, or of seen or unseen groups."""

    name: str
    """Name of the task or the groups."""
    num_questions: int
    """Number of their questions."""
    means: list[TableRow]
    """Scores, with a column for each model."""
    differences: list[TableRow]
    """Differences, with a column for each pair of models."""


class SideBySide(NamedTuple):
    """One question with the answers of one or two models."""

    question: Question
    """The question."""
    value: str
    """The score, or the difference of scores, for which the question is shown."""
    answers: dict[str, str]
    """Each answer, by the model's name with the answer's scores."""


def write_page(folder: Path, result: Result, samples: Mapping[str, Sequence[Sample]]) -> None:
    """Write compare.html and compare.png into `folder`. `samples`: those of each model by its name, all in one order of
    the questions. Raises OSError.
    """
    figure = draw(result)
    models, differences = list(result["models"].values()), result["differences"]
    # The tables are made here, because jinja's filters take a task named "Node.js" for a path, and "45" for an index.
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        models=list(result["models"]),
        differences=[difference_title(difference) for difference in differences],
        data=result["data"],
        remarks=remarks(result),
        bold=BOLD,
        multiple=MULTIPLE,
        chart=base64.b64encode(svg_bytes(figure)).decode(),
        means=mean_rows([model["metrics"] for model in models]) + corpus_rows(models),
        paired=difference_rows([difference["metrics"] for difference in differences]),
        flips=flip_lines(differences),
        perplexities={text: [model["perplexity"][text] for model in models] for text in models[0]["perplexity"]},
        tasks=task_tables(result, next(iter(samples.values()))),
        samples=side_by_side(samples),
        shown_chars=SHOWN_CHARS,
    )
    write_file(folder / "compare.png", png_bytes(figure))
    write_file(folder / "compare.html", page.encode())


def task_tables(result: Result, samples: Sequence[Sample]) -> list[TaskTables]:
    """The tables of seen and unseen groups, and of each task. `samples`: those of any model, of which the questions are
    counted.
    """
    models, differences = list(result["models"].values()), result["differences"]
    num_questions = Counter(sample.question.task for sample in samples)
    num_unseen = sum(bool(sample.is_unseen) for sample in samples)
    of_groups = {SEEN: len(samples) - num_unseen, UNSEEN: num_unseen}
    groups = [
        TaskTables(
            f"{group} groups",
            of_groups[group],
            mean_rows([model["groups"][group] for model in models]),
            difference_rows([difference["groups"][group] for difference in differences]),
        )
        for group in models[0]["groups"]
    ]
    return groups + [
        TaskTables(
            task,
            num_questions[task],
            mean_rows([model["tasks"][task] for model in models]),
            difference_rows([difference["tasks"][task] for difference in differences]),
        )
        for task in models[0]["tasks"]
    ]


# ---- answers beside each other


def side_by_side(samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[SideBySide]]:
    """Answers to show, by heading: of one model the best and the worst; of several models those in which each gained
    and lost most on the first.
    """
    first, *others = samples
    metric = ranked_by(samples)
    by_heading = {} if others else best_and_worst(first, samples[first], metric)
    for other in others:
        by_heading |= gains_and_losses(first, other, samples, metric)
    return {f"{heading} ({SAMPLE_METRICS[metric]})": shown for heading, shown in by_heading.items() if shown}


def best_and_worst(name: str, samples: Sequence[Sample], metric: str) -> dict[str, list[SideBySide]]:
    """The best and the worst answers of a model, by heading; together they are at most all its answers."""
    order = sorted(range(len(samples)), key=lambda i: -score_of(samples[i], metric))
    most = min(SHOWN, (len(order) + 1) // 2)

    def shown(chosen: list[int]) -> list[SideBySide]:
        return [beside(samples[i].question, f"{score_of(samples[i], metric):.3f}", {name: samples[i]}) for i in chosen]

    return {
        f"The best answers of {name}": shown(order[:most]),
        f"The worst answers of {name}": shown(order[most:][::-1][:most]),
    }


def gains_and_losses(
    first: str, other: str, samples: Mapping[str, Sequence[Sample]], metric: str
) -> dict[str, list[SideBySide]]:
    """The answers of two models to the same questions that differ most, by heading."""
    pairs = list(zip(samples[first], samples[other], strict=True))
    gains = [score_of(b, metric) - score_of(a, metric) for a, b in pairs]
    order = sorted(range(len(gains)), key=lambda i: gains[i])

    def shown(chosen: list[int]) -> list[SideBySide]:
        return [
            beside(pairs[i][0].question, f"{gains[i]:+.3f}", {first: pairs[i][0], other: pairs[i][1]})
            for i in chosen[:SHOWN]
        ]

    return {
        f"Answers in which {other} gained most on {first}": shown([i for i in order if gains[i] > 0][::-1]),
        f"Answers in which {other} lost most on {first}": shown([i for i in order if gains[i] < 0]),
    }


def beside(question: Question, value: str, samples: Mapping[str, Sample]) -> SideBySide:
    """A question with its answers. `samples`: the sample of each model that is shown, by its name."""

    def title(name: str, sample: Sample) -> str:
        scores = ((metric, sample.scores[metric]) for metric in PUBLISHED)
        told = ", ".join(f"{SAMPLE_METRICS[m]} {score:.3f}" for m, score in scores if score is not None)
        outcome = sample.outcome
        read = "" if outcome.task == "text" else f"; read: {'nothing' if outcome.read is None else outcome.read[:80]}"
        return f"{name}: {told}{read}"

    return SideBySide(question, value, {title(name, sample): sample.answer.output for name, sample in samples.items()})


def ranked_by(samples: Mapping[str, Sequence[Sample]]) -> str:
    """The metric that decides which samples are the best and the worst: the first of RANKED_BY that all have."""
    scores = [sample.scores for of_model in samples.values() for sample in of_model]
    return next(metric for metric in RANKED_BY if all(of_one[metric] is not None for of_one in scores))


def score_of(sample: Sample, metric: str) -> float:
    """The score of a sample in a metric that all have."""
    score = sample.scores[metric]
    assert score is not None, metric
    return score
