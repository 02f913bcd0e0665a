"""Charts of the report: what their axes say."""

from pathlib import Path

import numpy as np
import pytest

from logtrain.observe.charts import MOST_LINES, MOST_POINTS, Chart, draw, losses, png_bytes, system
from logtrain.observe.goodput import Attempt
from logtrain.observe.run_files import RunFiles


@pytest.mark.parametrize(("lowest", "highest"), [(0.6, 9.5), (1e-4, 3e4), (0.02, 0.09)])
def test_a_logarithmic_axis_has_numbers_that_people_read(lowest, highest):
    chart = Chart("grad_norm", "gradient norm", is_log=True)
    chart.add("", [(0, highest), (1, lowest), (2, lowest)], 0)
    axes = draw(chart).axes[0]
    axes.figure.draw_without_rendering()
    labels = [tick.label1.get_text() for tick in axes.yaxis.get_major_ticks()]
    told = [float(label.replace("k", "e3").replace("M", "e6")) for label in labels if label]
    assert axes.get_yscale() == "log"
    assert sum(lowest <= value <= highest for value in told) >= 2
    assert not any(tick.label1.get_text() for tick in axes.yaxis.get_minor_ticks())


@pytest.mark.parametrize("label", ["a", "set of logs {}", "held out: the logs of machine {} by month"])
def test_a_legend_of_many_lines_takes_no_room_from_the_chart_and_tells_what_is_left_out(label):
    few, many = Chart("loss", "loss"), Chart("loss", "loss")
    for chart, count in ((few, 8), (many, MOST_LINES + 3)):
        for number in range(count):
            chart.add(label.format(number), [(0, 1), (9, 2)], number)
    figures = [draw(few), draw(many)]
    for figure in figures:
        figure.draw_without_rendering()
    heights = [figure.axes[0].get_window_extent().height for figure in figures]
    assert heights[1] > 0.9 * heights[0]
    legend = figures[1].legends[0]
    assert legend.get_title().get_text() == "3 more are not drawn" and not few.left_out
    assert legend.get_window_extent().y1 <= figures[1].axes[0].xaxis.get_label().get_window_extent().y0


def test_the_sets_of_a_run_are_told_apart():
    run = RunFiles(Path("a"), "a", steps=[{"step": 1, "loss": 1.0}])
    run.validations = {f"set{number}": [{"step": 1, "valid_loss": 2.0}] for number in range(MOST_LINES - 1)}
    curves = losses([run]).curves
    assert len({(curve.color, curve.style) for curve in curves}) == len(curves) == MOST_LINES


def test_runs_are_told_apart_by_the_ends_of_their_names_and_their_sets():
    """Within the width of the chart."""
    runs = [RunFiles(Path(name), name) for name in (f"{'nlplog-8b-lora-' * 6}seed-{seed}" for seed in (1, 2))]
    for run in runs:
        run.steps = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}]
        run.validations = {name: [{"step": 1, "valid_loss": 2.0}] for name in ("valid", "b", "c", "d", "e" * 90)}
    chart = losses(runs)
    assert len({curve.label for curve in chart.curves}) == len(chart.curves) == 12
    assert len({(curve.color, str(curve.style)) for curve in chart.curves}) == 12
    figure = draw(chart)
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1


def test_of_several_runs_no_gpu_leaves_a_run_out():
    """A line for each run, the mean of its GPUs, where 24 lines of GPUs are all of three runs."""
    runs = [RunFiles(Path(name), name) for name in "abcd"]
    gpus = [{"power_w": 500.0 + 10 * number} for number in range(8)]
    for run in runs:
        run.system = {"node": [{"time": 1.0, "gpus": gpus}, {"time": 2.0, "gpus": [*gpus[:7], {"lost": "gone"}]}]}
    (chart,) = [chart for chart in system(runs) if chart.curves]
    assert chart.title == "power of GPUs, mean, W" and not chart.left_out
    assert [(curve.label, curve.y) for curve in chart.curves] == [(name, [535.0, 530.0]) for name in "abcd"]
    (alone,) = [chart for chart in system(runs[:1]) if chart.curves]
    assert alone.title == "power of each GPU, W" and [len(curve.y) for curve in alone.curves] == [2] * 7 + [1]


@pytest.mark.parametrize("count", [5, 5 * MOST_POINTS])
def test_what_a_machine_did_while_the_run_was_killed_is_not_invented(count):
    """The line is interrupted between two starts, and nowhere else."""
    run = RunFiles(Path("a"), "a")
    run.attempts = [Attempt(began=began, last=began + count, devices=2) for began in (0.0, 3.0 * count)]
    times = [begin + second for begin in (0, 3 * count) for second in range(count)]
    run.system = {"node": [{"time": time, "cpu": 50.0 + time % 7} for time in times]}
    (chart,) = [chart for chart in system([run]) if chart.curves]
    x, y = draw(chart).axes[0].lines[0].get_data()
    (gap,) = np.flatnonzero(np.isnan(y))
    assert x[gap - 1] < count / 60 and x[gap + 1] >= 3 * count / 60 and np.all(np.diff(x) >= 0)
    assert draw(chart).axes[0].get_ylim()[1] > 50


def test_a_name_that_the_font_does_not_know_is_drawn_without_a_warning(recwarn):
    chart = Chart("loss", "loss")
    chart.add("\u65e5\u672c", [(0, 1), (9, 2)], 0)
    assert png_bytes(draw(chart, "\u65e5\u672c")).startswith(b"\x89PNG")
    assert not recwarn.list
