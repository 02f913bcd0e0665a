"""An evaluation as a page: compare.html, one file to read, send and print, and its chart alone, compare.png."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from logtrain.core.atomic import write_file
from logtrain.data.questions import Question
from logtrain.evaluation.comparison import BOLD, MULTIPLE, PUBLISHED, TITLES, corpus_table, remarks, table
from logtrain.evaluation.scoring import Pair, Scores

TEMPLATE = Path(__file__).with_name("compare.html.jinja")
COLORS = ("#8a96a3", "#2f6fb0", "#d9822b", "#3f9c6b", "#8e5ea2", "#b9423f")  # told apart by the colour-blind, too
INK = "#1d2733"
SHOWN = 10  # answers at each end
SHOWN_CHARS = 1200  # of a text; the rest is behind a click
RANKED_BY = "rougeL"  # which answers are best and worst


def write_page(
    folder: Path,
    result: dict,
    questions: Sequence[Question],
    pairs: Mapping[str, Sequence[Pair]],
    scores: Mapping[str, Sequence[Scores]],
) -> None:
    """`result`: what scores.json holds; the others by model and sample, in one order."""
    figure, picture, chart = draw(result), io.BytesIO(), io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    figure.savefig(chart, format="svg")
    models, differences = list(result["models"].values()), result["differences"]
    kinds = Counter(question.task for question in questions)
    # The tables are made here: to jinja's filters a task named "Node.js" is a path, one named "45" a place in a list.
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        models=list(result["models"]),
        differences=["{1} less {0}".format(*difference["models"]) for difference in differences],
        data=result["data"],
        remarks=remarks(result["data"]),
        bold=BOLD,
        multiple=MULTIPLE,
        chart=base64.b64encode(chart.getvalue()).decode(),
        scores=table([model["metrics"] for model in models]) + corpus_table(result["models"]),
        paired=table([difference["metrics"] for difference in differences]),
        perplexities={text: [model["perplexity"][text] for model in models] for text in models[0]["perplexity"]},
        tasks=[
            {
                "name": kind,
                "questions": kinds[kind],
                "scores": table([model["tasks"][kind] for model in models]),
                "paired": table([difference["tasks"][kind] for difference in differences]),
            }
            for kind in models[0]["tasks"]
        ],
        answers=side_by_side(questions, pairs, scores),
        shown_chars=SHOWN_CHARS,
    )
    write_file(folder / "compare.png", picture.getvalue())
    write_file(folder / "compare.html", page.encode())


def side_by_side(
    questions: Sequence[Question], pairs: Mapping[str, Sequence[Pair]], scores: Mapping[str, Sequence[Scores]]
) -> dict[str, list[dict]]:
    """Heading -> answers. Of one model the best and the worst; of several those in which each gained and lost most on
    the first."""
    first, *others = scores
    found = {}

    def add(heading: str, names: tuple[str, ...], chosen: list[int], values: list[float]) -> None:
        sign = "+" if others else ""
        if chosen:
            found[f"{heading} ({TITLES[RANKED_BY]})"] = [
                {
                    "question": questions[i],
                    "value": f"{values[i]:{sign}.3f}",
                    "answers": {titled(name, i): pairs[name][i][0] for name in names},
                }
                for i in chosen
            ]

    def titled(name: str, i: int) -> str:
        return f"{name}: " + ", ".join(f"{TITLES[metric]} {scores[name][i][metric]:.3f}" for metric in PUBLISHED)

    for other in others:
        gains = [b[RANKED_BY] - a[RANKED_BY] for a, b in zip(scores[first], scores[other], strict=True)]
        order = sorted(range(len(gains)), key=lambda i: gains[i])
        gained, lost = ([i for i in order if sign * gains[i] > 0] for sign in (1, -1))
        add(f"Answers in which {other} gained most on {first}", (first, other), gained[::-1][:SHOWN], gains)
        add(f"Answers in which {other} lost most on {first}", (first, other), lost[:SHOWN], gains)
    if not others:
        values = [sample[RANKED_BY] for sample in scores[first]]
        order = sorted(range(len(values)), key=lambda i: -values[i])
        most = min(SHOWN, (len(order) + 1) // 2)
        add(f"The best answers of {first}", (first,), order[:most], values)
        add(f"The worst answers of {first}", (first,), order[most:][::-1][:most], values)
    return found


# ---- the chart


def draw(result: dict) -> Figure:
    """Bars of the published metrics by model, with 95% intervals; below, the differences between models."""
    models, differences = result["models"], result["differences"]
    heights = (4.0, 1.2 * len(differences)) if differences else (4.0,)
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 10, "svg.hashsalt": "logtrain"}):
        figure = Figure(figsize=(10, sum(heights) + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        rows = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        draw_scores(rows[0], models)
        if differences:
            draw_differences(rows[1], differences)
        for axes in rows:
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_scores(axes: Axes, models: dict[str, dict]) -> None:
    width = 0.8 / len(models)
    for i, (name, model) in enumerate(models.items()):
        cells = [model["metrics"][metric] for metric in PUBLISHED]
        means = [cell["mean"] for cell in cells]
        reach = [
            [0.0 if cell[end] is None else abs(cell["mean"] - cell[end]) for cell in cells] for end in ("low", "high")
        ]
        at = [x + (i - (len(models) - 1) / 2) * width for x in range(len(PUBLISHED))]
        bars = axes.bar(at, means, width * 0.92, yerr=reach, color=COLORS[i % len(COLORS)], label=name,
                        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2})  # fmt: skip
        axes.bar_label(bars, [f"{mean:.3f}" for mean in means], padding=2, fontsize=8 if len(models) < 4 else 6)
    axes.set_xticks(range(len(PUBLISHED)), [TITLES[metric] for metric in PUBLISHED])
    axes.set_ylabel("mean score, 95% interval")
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, ncols=len(models), loc="lower right", bbox_to_anchor=(1, 1))


def draw_differences(axes: Axes, differences: list[dict]) -> None:
    """A line a metric, in groups of a pair of models."""
    labels, places = [], []
    for i, difference in enumerate(differences):
        top = i * (len(PUBLISHED) + 1.5)
        axes.text(0.01, top - 0.9, "{1} less {0}".format(*difference["models"]), weight="bold", va="center",
                  bbox={"color": "white", "pad": 0.5}, transform=axes.get_yaxis_transform())  # fmt: skip
        for j, metric in enumerate(PUBLISHED):
            cell = difference["metrics"][metric]
            if cell["low"] is not None:
                axes.plot([cell["low"], cell["high"]], [top + j] * 2, color=INK, linewidth=1.5)
            fill = INK if cell["significant"] else "white"
            axes.plot(cell["difference"], top + j, "o", color=INK, markersize=5, markerfacecolor=fill)
            labels.append(TITLES[metric])
            places.append(top + j)
    axes.axvline(0, color=INK, linewidth=1, linestyle=":")
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("paired difference, 95% interval; filled: 0 is outside it, and p is at most 0.05")
