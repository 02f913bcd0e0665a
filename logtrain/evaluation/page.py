"""An evaluation as a page: compare.html, one file to read, send and print, and its chart alone, compare.png."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from logtrain.core.atomic import write_file
from logtrain.data.questions import Question
from logtrain.evaluation.chart import draw, png_bytes, svg_bytes
from logtrain.evaluation.results import Result
from logtrain.evaluation.samples import SAMPLE_METRICS, Sample
from logtrain.evaluation.score_table import (
    BOLD,
    MULTIPLE,
    TableRow,
    corpus_rows,
    difference_rows,
    difference_title,
    mean_rows,
    remarks,
)
from logtrain.evaluation.scoring import PUBLISHED

TEMPLATE = Path(__file__).with_name("compare.html.jinja")
SHOWN = 10  # samples at each end
SHOWN_CHARS = 1200  # of a text; the rest is behind a click
RANKED_BY = "rougeL"  # which answers are best and worst


class TaskTables(NamedTuple):
    """What the page says of one task."""

    name: str
    num_questions: int
    means: list[TableRow]
    differences: list[TableRow]


class SideBySide(NamedTuple):
    """One question with the answers to it."""

    question: Question
    value: str
    """The score, or the gain, that it is shown for."""
    answers: dict[str, str]
    """The model's name with its scores, and its answer."""


def write_page(folder: Path, result: Result, samples: Mapping[str, Sequence[Sample]]) -> None:
    """`samples`: of each model of the result, by its name, in one order of the questions."""
    figure = draw(result)
    models, differences = list(result["models"].values()), result["differences"]
    # The tables are made here: to jinja's filters a task named "Node.js" is a path, one named "45" a place in a list.
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        models=list(result["models"]),
        differences=[difference_title(difference) for difference in differences],
        data=result["data"],
        remarks=remarks(result["data"]),
        bold=BOLD,
        multiple=MULTIPLE,
        chart=base64.b64encode(svg_bytes(figure)).decode(),
        means=mean_rows([model["metrics"] for model in models]) + corpus_rows(models),
        paired=difference_rows([difference["metrics"] for difference in differences]),
        perplexities={text: [model["perplexity"][text] for model in models] for text in models[0]["perplexity"]},
        tasks=task_tables(result, next(iter(samples.values()))),
        samples=side_by_side(samples),
        shown_chars=SHOWN_CHARS,
    )
    write_file(folder / "compare.png", png_bytes(figure))
    write_file(folder / "compare.html", page.encode())


def task_tables(result: Result, samples: Sequence[Sample]) -> list[TaskTables]:
    """`samples`: of any model."""
    models, differences = list(result["models"].values()), result["differences"]
    num_questions = Counter(sample.question.task for sample in samples)
    return [
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
    """Heading -> answers. Of one model the best and the worst; of several those in which each gained and lost most on
    the first.
    """
    first, *others = samples
    by_heading = {} if others else best_and_worst(first, samples[first])
    for other in others:
        by_heading |= gains_and_losses(first, other, samples)
    return {f"{heading} ({SAMPLE_METRICS[RANKED_BY]})": shown for heading, shown in by_heading.items() if shown}


def best_and_worst(name: str, samples: Sequence[Sample]) -> dict[str, list[SideBySide]]:
    """Half of the answers at most at each end."""
    order = sorted(range(len(samples)), key=lambda i: -ranking_score(samples[i]))
    most = min(SHOWN, (len(order) + 1) // 2)

    def shown(chosen: list[int]) -> list[SideBySide]:
        return [beside(samples[i].question, f"{ranking_score(samples[i]):.3f}", {name: samples[i]}) for i in chosen]

    return {
        f"The best answers of {name}": shown(order[:most]),
        f"The worst answers of {name}": shown(order[most:][::-1][:most]),
    }


def gains_and_losses(first: str, other: str, samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[SideBySide]]:
    """Of two models' answers to the same questions those that differ most."""
    pairs = list(zip(samples[first], samples[other], strict=True))
    gains = [ranking_score(b) - ranking_score(a) for a, b in pairs]
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
    """`samples`: of each model that is shown, by its name."""

    def title(name: str, sample: Sample) -> str:
        return f"{name}: " + ", ".join(f"{SAMPLE_METRICS[metric]} {sample.scores[metric]:.3f}" for metric in PUBLISHED)

    return SideBySide(question, value, {title(name, sample): sample.answer.output for name, sample in samples.items()})


def ranking_score(sample: Sample) -> float:
    """What decides which samples are best and worst."""
    score = sample.scores[RANKED_BY]
    assert score is not None, "every answer has this score"
    return score
