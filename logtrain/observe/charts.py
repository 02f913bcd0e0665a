"""The charts of runs: one or several laid over one another, as small pictures that stay legible on a phone."""

import io
import math
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from logtrain.core.printable import shortened
from logtrain.observe.run_files import Line, RunFiles, is_number

COLORS = ("#2f6fb0", "#d9822b", "#3f9c6b", "#8e5ea2", "#b9423f", "#8a96a3")  # told apart by the colour-blind, too
STYLES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2, 2, 2)))
INK, GRID = "#1d2733", "#e3e7ec"
SIZE = (4.4, 2.7)  # inches: 317 points, 422 pixels, wide, so that on a phone of 390 pixels the text is hardly smaller
MOST_POINTS = 800  # of a line; more are drawn as the lowest and the highest of each stretch
MOST_LINES = 24  # of a chart
MOST_OF_LABEL = 56  # letters of a line's name: as many as fit into SIZE
FREE_ROWS, LINE = 2, 0.2  # rows of a legend that SIZE has room for, and inches that each further one adds
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "logtrain",
    "text.parse_math": False,  # a run may be called "$x$"
    "axes.edgecolor": "#8a96a3",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


# A figure of the training records and its title.
OF_STEPS = {
    "lr": "learning rate",
    "grad_norm": "gradient norm before clipping",
    "tokens_per_second": "tokens a second",
    "step_seconds": "seconds a step",
    "peak_memory_gib": "peak memory, GiB",
}


@dataclass
class Curve:
    """One line of a chart."""

    label: str
    x: list[float]
    y: list[float]
    color: str
    style: Any = "-"
    breaks: Sequence[float] = ()
    """Where the line is interrupted, in order: nobody was there to measure."""

    def broken(self) -> tuple[list[float], list[float]]:
        """Its points, with one that is not drawn at every interruption."""
        points: list[tuple[float, float]] = []
        for x, y in zip(self.x, self.y, strict=True):
            if points and bisect_right(self.breaks, points[-1][0]) < bisect_right(self.breaks, x):
                points.append((x, math.nan))
            points.append((x, y))
        return [x for x, _ in points], [y for _, y in points]


@dataclass
class Chart:
    """A chart before it is drawn."""

    name: str
    """A word for files and links."""
    title: str
    """What is drawn, with its unit."""
    curves: list[Curve] = field(default_factory=list)
    x_label: str = "step"
    is_log: bool = False
    from_zero: bool = False
    left_out: int = 0
    """Lines beyond MOST_LINES, which are not drawn."""

    def add(
        self,
        label: str,
        points: Iterable[tuple[Any, Any]],
        color: int,
        style: int = 0,
        breaks: Sequence[float] = (),
    ) -> None:
        """Add a line of those points that are numbers, unless there are none."""
        kept = [(x, y) for x, y in points if is_number(x) and is_number(y)]
        if kept and len(self.curves) == MOST_LINES:
            self.left_out += 1
        elif kept:
            x, y = thinned(kept)
            self.curves.append(Curve(label, x, y, COLORS[color % len(COLORS)], STYLES[style % len(STYLES)], breaks))


def thinned(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """At most MOST_POINTS of the points, with the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) > MOST_POINTS:
        stretch = -(-2 * len(points) // MOST_POINTS)
        kept = []
        for first in range(0, len(points), stretch):
            part = range(first, min(first + stretch, len(points)))
            ends = {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
            kept += [points[i] for i in sorted(ends)]
        points = kept
    return [x for x, _ in points], [y for _, y in points]


def charts_of(runs: Sequence[RunFiles]) -> list[Chart]:
    """The charts of which at least one run has data."""
    made = [losses(runs), *sources(runs)]
    for key, title in OF_STEPS.items():
        chart = Chart(key, title, is_log=key == "grad_norm", from_zero=key not in ("lr", "grad_norm"))
        for at, run in enumerate(runs):
            chart.add(named(run, runs, ""), ((r.get("step"), r.get(key)) for r in run.steps), at)
        made.append(chart)
    made += system(runs)
    return [chart for chart in made if chart.curves]


def named(run: RunFiles, runs: Sequence[RunFiles], what: str) -> str:
    """The label of a line: what it is and, of several runs, of which."""
    short = shortened(what, MOST_OF_LABEL // 2 if len(runs) > 1 else MOST_OF_LABEL)
    return short if len(runs) == 1 else f"{shortened(run.name, MOST_OF_LABEL - len(short))} {short}".strip()


def losses(runs: Sequence[RunFiles]) -> Chart:
    """Training and held-out losses."""
    chart = Chart("loss", "loss, nats a target")
    for at, run in enumerate(runs):
        color = at if len(runs) > 1 else 0
        chart.add(named(run, runs, "training"), ((r.get("step"), r.get("loss")) for r in run.steps), color)
        for number, (name, records) in enumerate(run.validations.items(), 1):
            points = ((r.get("step"), r.get("valid_loss")) for r in records)
            label = named(run, runs, f"held out: {name}" if name != "valid" else "held out")
            chart.add(label, points, *((color, number) if len(runs) > 1 else (number, number // len(COLORS))))
    return chart


def sources(runs: Sequence[RunFiles]) -> list[Chart]:
    """The training loss of each source of a mixture."""
    chart = Chart("sources", "training loss by source, nats a target")
    for at, run in enumerate(runs):
        keys = dict.fromkeys(key for record in run.steps[:50] for key in record if key.startswith("loss."))
        for number, key in enumerate(keys):
            points = ((r.get("step"), r.get(key)) for r in run.steps)
            color, style = (at, number) if len(runs) > 1 else (number, number // len(COLORS))
            chart.add(named(run, runs, key.removeprefix("loss.")), points, color, style)
    return [chart]


# Name, what it is, its unit, key of a sample's `gpus` entries, and by what it is divided.
OF_GPUS = (
    ("power", "power", "W", "power_w", 1),
    ("utilisation", "utilisation", "%", "utilisation", 1),
    ("gpu_memory", "memory", "GiB", "memory_bytes", 2**30),
    ("temperature", "temperature", "°C", "temperature_c", 1),
    ("clock", "clock", "MHz", "clock_mhz", 1),
    ("nvlink", "NVLink", "GB/s", "nvlink_bytes_per_second", 1e9),
    ("pcie", "PCIe", "GB/s", "pcie_bytes_per_second", 1e9),
)
OF_HOST = (
    ("cpu", "processors in use", "%", "cpu", 1),
    ("ram", "memory of the machine in use", "GiB", "ram_bytes", 2**30),
    ("disk", "disk", "MB/s", "disk_bytes_per_second", 1e6),
    ("network", "network", "MB/s", "network_bytes_per_second", 1e6),
)
OF_HOST_KEYS = {entry[3] for entry in OF_HOST}


def system(runs: Sequence[RunFiles]) -> list[Chart]:
    """What the machines did, over the minutes since the run began: each machine and each of its GPUs or, of several
    runs, the mean of its GPUs.
    """
    made, several = [], len(runs) > 1
    for name, what, unit, key, size in (*OF_GPUS, *OF_HOST):
        of_gpu = (" of GPUs, mean" if several else " of each GPU") * (key not in OF_HOST_KEYS)
        chart = Chart(name, f"{what}{of_gpu}, {unit}", x_label="minutes since the start", from_zero=True)
        for at, run in enumerate(runs):
            began = run.attempts[0].began if run.attempts else None
            for number, (node, samples) in enumerate(run.system.items()):
                start = began if began is not None else samples[0].get("time", 0)
                for index, label, points in of_node(samples, key, node if len(run.system) > 1 else "", several):
                    scaled = [((t - start) / 60, value / size) for t, value in points]
                    color, style = (at, number) if several else (number + index, index // len(COLORS))
                    breaks = [(each.began - start) / 60 for each in run.attempts[1:]]
                    chart.add(named(run, runs, label), scaled, color, style, breaks)
        made.append(chart)
    return made


def of_node(
    samples: Sequence[Line], key: str, node: str, together: bool
) -> list[tuple[int, str, list[tuple[float, float]]]]:
    """(number, label, points) of one figure, of a machine or of each of its GPUs or, `together`, of their mean."""
    timed = [sample for sample in samples if is_number(sample.get("time"))]
    if key in OF_HOST_KEYS:
        return [(0, node, [(sample["time"], sample[key]) for sample in timed if is_number(sample.get(key))])]
    found: dict[int, list[tuple[float, float]]] = {}
    for sample in timed:
        gpus = sample.get("gpus")
        values = {
            index: gpu[key]
            for index, gpu in enumerate(gpus if isinstance(gpus, list) else [])
            if isinstance(gpu, dict) and is_number(gpu.get(key))
        }
        if together and values:
            values = {0: fmean(values.values())}
        for index, value in values.items():
            found.setdefault(index, []).append((sample["time"], value))
    return [(index, node if together else f"{node} GPU {index}".strip(), found[index]) for index in sorted(found)]


# ---- drawing


def draw(chart: Chart, title: str = "", size: tuple[float, float] = SIZE) -> Figure:
    """A chart as a figure. `title`: what stands above it where it travels alone."""
    with matplotlib.rc_context(STYLE):
        labels = [curve.label for curve in chart.curves]
        longest = max(map(len, labels), default=0)
        columns = 1 if longest > 24 else 2 if longest > 9 else 4
        rows = (-(-len(labels) // columns) + bool(chart.left_out)) * any(labels)
        size = size[0], size[1] + LINE * max(0, rows - FREE_ROWS)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for curve in chart.curves:
            marked = {"marker": "o", "markersize": 4} if len(curve.x) < 3 else {}
            axes.plot(*curve.broken(), color=curve.color, linestyle=curve.style, linewidth=1.4, **marked)
        axes.set_title(title, fontsize=10, loc="left", wrap=True)
        axes.set_xlabel(chart.x_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        values = [value for curve in chart.curves for value in curve.y]
        if chart.is_log and min(values) > 0 and max(values) > 3 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 1000 * min(values) else (1,)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        if chart.from_zero:
            axes.set_ylim(0, 1.08 * max(values) or 1)
        whole = chart.x_label == "step"
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        if any(labels):
            more = f"{chart.left_out} more are not drawn" if chart.left_out else None
            place = {"loc": "outside lower left", "ncols": columns, "title": more}
            figure.legend(axes.lines, labels, frameon=False, fontsize=8.5, title_fontsize=8.5, **place)
    return figure


def short(value: float) -> str:
    """A number at an axis: 12k, 1.5M, 0.003."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if name == 'k' else unit):.4g}{name}"
    return f"{value:.4g}"


def svg_bytes(figure: Figure) -> bytes:
    """A figure as SVG; equal figures are equal bytes."""
    return saved(figure, format="svg", metadata={"Date": None})


def png_bytes(figure: Figure) -> bytes:
    """A figure as a PNG of 150 dots an inch."""
    return saved(figure, format="png", dpi=150)


def saved(figure: Figure, **options: Any) -> bytes:
    """A figure as a file of the format that the options of `savefig` say."""
    picture = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a name in letters that the font has not
        figure.savefig(picture, **options)
    return picture.getvalue()
