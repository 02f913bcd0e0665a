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

from logtrain.comparison import PUBLISHED, TITLES
from logtrain.data.questions import Question
from logtrain.scoring import CORPUS_METRICS, Pair, Scores

TEMPLATE = Path(__file__).with_name("compare.html.jinja")
COLORS = ("#8a96a3", "#2f6fb0", "#d9822b", "#3f9c6b", "#8e5ea2", "#b9423f")  # told apart by the colour-blind, too
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
    figure, chart = draw(result), io.BytesIO()
    figure.savefig(folder / "compare.png", dpi=150)
    figure.savefig(chart, format="svg")
    kinds = Counter(question.task for question in questions)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.ChainableUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        **result,
        chart=base64.b64encode(chart.getvalue()).decode(),
        titles=TITLES,
        corpus_titles=CORPUS_METRICS,
        published=PUBLISHED,
        pairs=["{1} less {0}".format(*difference["models"]) for difference in result["differences"]],
        tasks=dict(sorted(kinds.items())) if len(kinds) > 1 else {},
        answers=extremes(questions, pairs, scores),
        shown_chars=SHOWN_CHARS,
    )
    (folder / "compare.html").write_text(page, encoding="utf-8")


def extremes(
    questions: Sequence[Question], pairs: Mapping[str, Sequence[Pair]], scores: Mapping[str, Sequence[Scores]]
) -> dict[str, list[dict]]:
    """Heading -> samples. Of several models those in which the last gained or lost most on the first, else the best and
    the worst."""
    names = list(scores)
    several = len(names) > 1
    gains = [
        after[RANKED_BY] - (before[RANKED_BY] if several else 0)
        for before, after in zip(scores[names[0]], scores[names[-1]], strict=True)
    ]
    order = sorted(range(len(gains)), key=lambda i: -gains[i])
    most = min(SHOWN, (len(order) + 1) // 2)
    best, worst = order[:most], order[most:][-most:][::-1]

    def sample(i: int) -> dict:
        answers = {name: {"output": pairs[name][i][0], "scores": scores[name][i]} for name in names}
        return {"question": questions[i], "gain": gains[i], "answers": answers}

    words = ("gained", "lost") if several else ("best", "worst")
    form = f"Answers by which {names[-1]} {{}} most on {names[0]}" if several else f"The {{}} answers of {names[0]}"
    return {
        f"{form.format(word)} ({TITLES[RANKED_BY]})": [sample(i) for i in chosen]
        for word, chosen in zip(words, (best, worst), strict=True)
        if chosen
    }


# ---- the chart


def draw(result: dict) -> Figure:
    """Bars of the published metrics by model, with 95% intervals; below, the differences between models."""
    models, differences = result["models"], result["differences"]
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 10, "svg.hashsalt": "logtrain"}):
        figure = Figure(figsize=(10, 4.2 + (1.0 + 0.9 * len(differences) if differences else 0)), layout="constrained")
        FigureCanvasAgg(figure)
        rows = figure.subplots(2, 1, height_ratios=(4.2, 1.0 + 0.9 * len(differences))) if differences else None
        axes = rows[0] if differences else figure.subplots()
        width = 0.8 / len(models)
        for i, (name, model) in enumerate(models.items()):
            cells = [model["metrics"][metric] for metric in PUBLISHED]
            at = [x + (i - (len(models) - 1) / 2) * width for x in range(len(PUBLISHED))]
            means = [cell["mean"] for cell in cells]
            errors = [[abs(cell["mean"] - (cell[end] if cell[end] is not None else cell["mean"])) for cell in cells]
                      for end in ("low", "high")]  # fmt: skip
            bars = axes.bar(at, means, width * 0.92, yerr=errors, color=color(i), label=name,
                            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#1d2733"})  # fmt: skip
            axes.bar_label(bars, [f"{mean:.3f}" for mean in means], padding=2, fontsize=8 if len(models) < 4 else 6)
        axes.set_xticks(range(len(PUBLISHED)), [TITLES[metric] for metric in PUBLISHED])
        axes.set_ylabel("mean score, 95% interval")
        axes.set_ylim(bottom=0)
        axes.margins(y=0.12)
        axes.legend(frameon=False, ncols=len(models), loc="upper right")
        plain(axes)
        if differences:
            draw_differences(rows[1], differences)
    return figure


def draw_differences(axes: Axes, differences: list[dict]) -> None:
    axes.axvline(0, color="#1d2733", linewidth=1)
    labels, ticks = [], []
    for i, difference in enumerate(differences):
        for j, metric in enumerate(PUBLISHED):
            cell, y = difference["metrics"][metric], -(i * (len(PUBLISHED) + 1) + j)
            if cell["low"] is not None:
                axes.plot([cell["low"], cell["high"]], [y, y], color=color(j), linewidth=1.5)
            axes.plot(cell["difference"], y, "o", color=color(j), markersize=4,
                      markerfacecolor=color(j) if cell["significant"] else "white",
                      label=TITLES[metric] if i == 0 else None)  # fmt: skip
        labels.append("{1} less {0}".format(*difference["models"]))
        ticks.append(-(i * (len(PUBLISHED) + 1) + (len(PUBLISHED) - 1) / 2))
    axes.set_yticks(ticks, labels)
    axes.set_xlabel("paired difference, 95% interval; filled: without 0")
    axes.legend(frameon=False, ncols=len(PUBLISHED), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    plain(axes)


def plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def color(i: int) -> str:
    return COLORS[i % len(COLORS)]
