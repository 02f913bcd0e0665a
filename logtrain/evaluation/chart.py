"""The chart of an evaluation: bars of the published metrics by model, above the differences between models."""

import io
from collections.abc import Collection, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from logtrain.evaluation.results import ModelDifference, ModelScores, Result
from logtrain.evaluation.score_table import difference_title
from logtrain.evaluation.scoring import METRICS, PUBLISHED

COLORS = ("#8a96a3", "#2f6fb0", "#d9822b", "#3f9c6b", "#8e5ea2", "#b9423f")  # told apart by the colour-blind, too
INK = "#1d2733"
SCORES_HEIGHT, DIFFERENCE_HEIGHT = 4.0, 1.2  # inches; DIFFERENCE_HEIGHT for each pair of models


def draw(result: Result) -> Figure:
    """The chart of a result, with 95% intervals."""
    models, differences = result["models"], result["differences"]
    heights = (SCORES_HEIGHT, DIFFERENCE_HEIGHT * len(differences)) if differences else (SCORES_HEIGHT,)
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=(10, sum(heights) + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        draw_scores(axes[0], models)
        if differences:
            draw_differences(axes[1], differences)
        for each in axes:
            each.spines[["top", "right"]].set_visible(False)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The chart as a PNG of 150 dots an inch."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """The chart as an SVG. Equal charts are equal bytes: they hold no date and no random names."""
    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "logtrain"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()


def shown_metrics(scored: Collection[ModelScores | ModelDifference]) -> list[str]:
    """The published metrics that all of these have: of some references no answer has a BLEU or a ROUGE."""
    return [metric for metric in PUBLISHED if all(metric in each["metrics"] for each in scored)]


def draw_scores(axes: Axes, models: Mapping[str, ModelScores]) -> None:
    """Draw a group of bars for each metric, with a bar for each model."""
    width, metrics = 0.8 / len(models), shown_metrics(models.values())
    for i, (name, model) in enumerate(models.items()):
        scores = [model["metrics"][metric] for metric in metrics]
        means = [score["mean"] for score in scores]
        reach = [
            [0.0 if end is None else abs(mean - end) for mean, end in zip(means, ends, strict=True)]
            for ends in ([score["low"] for score in scores], [score["high"] for score in scores])
        ]
        at = [x + (i - (len(models) - 1) / 2) * width for x in range(len(metrics))]
        bars = axes.bar(at, means, width * 0.92, yerr=reach, color=COLORS[i % len(COLORS)], label=name,
                        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2})  # fmt: skip
        axes.bar_label(bars, [f"{mean:.3f}" for mean in means], padding=2, fontsize=8 if len(models) < 4 else 6)
    axes.set_xticks(range(len(metrics)), [METRICS[metric] for metric in metrics])
    axes.set_ylabel("mean score, 95% interval")
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, ncols=len(models), loc="lower right", bbox_to_anchor=(1, 1))


def draw_differences(axes: Axes, differences: Sequence[ModelDifference]) -> None:
    """Draw a line for each metric, in a group for each pair of models."""
    labels, heights, metrics = [], [], shown_metrics(differences)
    for i, difference in enumerate(differences):
        top = i * (len(metrics) + 1.5)
        axes.text(0.01, top - 0.9, difference_title(difference), weight="bold", va="center",
                  bbox={"color": "white", "pad": 0.5}, transform=axes.get_yaxis_transform())  # fmt: skip
        for j, metric in enumerate(metrics):
            score = difference["metrics"][metric]
            if score["low"] is not None and score["high"] is not None:
                axes.plot([score["low"], score["high"]], [top + j] * 2, color=INK, linewidth=1.5)
            fill = INK if score["significant"] else "white"
            axes.plot(score["difference"], top + j, "o", color=INK, markersize=5, markerfacecolor=fill)
            labels.append(METRICS[metric])
            heights.append(top + j)
    axes.axvline(0, color=INK, linewidth=1, linestyle=":")
    axes.set_yticks(heights, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("paired difference, 95% interval; filled: 0 is outside it, and p is at most 0.05")
