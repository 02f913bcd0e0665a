"""Charts of the report: what their axes say."""

import pytest

from logtrain.observe.charts import Chart, draw


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
