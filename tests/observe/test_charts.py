"""Charts of the report: what their axes say."""

from pathlib import Path

import pytest

from logtrain.observe.charts import MOST_LINES, Chart, draw, losses, png_bytes
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


def test_a_name_that_the_font_does_not_know_is_drawn_without_a_warning(recwarn):
    chart = Chart("loss", "loss")
    chart.add("\u65e5\u672c", [(0, 1), (9, 2)], 0)
    assert png_bytes(draw(chart, "\u65e5\u672c")).startswith(b"\x89PNG")
    assert not recwarn.list
