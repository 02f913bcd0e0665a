"""The chart of an evaluation: bars of its tasks' figures, or of the published metrics, by model, above the differences
between models.
"""

import io
from collections.abc import Collection, Mapping

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from logtrain.evaluation.results import ModelDifference, ModelScores, Result
from logtrain.evaluation.score_table import TITLES, difference_title
from logtrain.evaluation.scoring import PUBLISHED
from logtrain.evaluation.tasks import ANSWER_METRICS, SET_METRICS

COLORS = ("#8a96a3", "#2f6fb0", "#d9822b", "#3f9c6b", "#8e5ea2", "#b9423f")  # told apart by the colour-blind, too
INK = "#1d2733"
WIDTH = 5.6  # inches, 403 points: at 358 pixels of a phone 10 points are 9 pixels
BAR, METRIC, ROW = 0.2, 0.14, 0.2  # inches: a model's bar, what is between two metrics, a row of differences
MARGIN = 0.75  # of titles and axes


def draw(result: Result) -> Figure:
    """The chart of a result, with 95% intervals. Its titles say of how many questions it is, also where it travels
    alone.
    """
    models, differences = result["models"], result["differences"]
    metrics = shown_metrics(models.values())
    heights = [MARGIN + len(metrics) * (METRIC + BAR * len(models))]
    heights += [MARGIN + ROW * len(metrics)] * len(differences)
    with matplotlib.rc_context({"font.size": 10, "text.parse_math": False}):
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        draw_scores(axes[0], models, f"mean of {result['data']['rows']:,} rows, 95% interval")
        for each, difference in zip(axes[1:], differences, strict=True):
            draw_difference(each, difference)
        for each in axes:
            each.spines[["top", "right"]].set_visible(False)
            each.tick_params(axis="y", length=0)
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
    """The figures of tasks that all of these have, else the published metrics: of some references no answer has a BLEU
    or a ROUGE.
    """
    both = [metric for metric in TITLES if all(metric in each["metrics"] for each in scored)]
    return [metric for metric in both if metric in SET_METRICS | ANSWER_METRICS] or [m for m in both if m in PUBLISHED]


def draw_scores(axes: Axes, models: Mapping[str, ModelScores], title: str) -> None:
    """Draw a group of bars for each metric, with a bar for each model, and its mean after the interval."""
    group, metrics = METRIC + BAR * len(models), shown_metrics(models.values())
    for i, (name, model) in enumerate(models.items()):
        for j, metric in enumerate(metrics):
            score, at = model["metrics"][metric], j * group + i * BAR
            low, high = score["low"], score["high"]
            color = COLORS[i % len(COLORS)]
            axes.barh(at, score["mean"], BAR * 0.9, color=color, label=name if j == 0 else None)
            if low is not None and high is not None:
                axes.plot([low, high], [at, at], color=INK, linewidth=1)
            told = f"{score['mean']:.3f}"
            end = score["mean"] if high is None else max(high, score["mean"])
            axes.annotate(told, (end, at), (4, 0), textcoords="offset points", va="center", fontsize=8)
    middle = (len(models) - 1) * BAR / 2
    axes.set_yticks([j * group + middle for j in range(len(metrics))], [TITLES[metric] for metric in metrics])
    axes.invert_yaxis()
    least, most = axes.get_xlim()
    axes.set_xlim(min(0, least), most * 1.08)
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(*named(axes, models), frameon=False, ncols=min(3, len(models)), fontsize=9,
                loc="upper left", bbox_to_anchor=(0, -0.35 / (MARGIN + len(metrics) * group)))  # fmt: skip


def named(axes: Axes, models: Mapping[str, ModelScores]) -> tuple[list, list[str]]:
    """The first bar of each model with its name, which may begin with an underscore."""
    step = len(shown_metrics(models.values()))
    return [container[0] for container in axes.containers[::step]], [name[:40] for name in models]


def draw_difference(axes: Axes, difference: ModelDifference) -> None:
    """Draw a line for each metric of a pair of models."""
    metrics = shown_metrics([difference])
    for j, metric in enumerate(metrics):
        score = difference["metrics"][metric]
        if score["low"] is not None and score["high"] is not None:
            axes.plot([score["low"], score["high"]], [j, j], color=INK, linewidth=1.5)
        fill = INK if score["significant"] else "white"
        axes.plot(score["difference"], j, "o", color=INK, markersize=5, markerfacecolor=fill)
    axes.axvline(0, color=INK, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(metrics)), [TITLES[metric] for metric in metrics])
    axes.set_ylim(len(metrics) - 0.4, -0.6)
    count = difference["metrics"][metrics[0]]["n"]
    told = "95% interval; filled: not 0"
    axes.set_title(f"{difference_title(difference)[:60]}, {count:,} rows ({told})", fontsize=10, loc="left")
