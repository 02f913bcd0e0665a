"""Intervals come from the ranges of the constants: by how much each moves a step, in quadrature."""

from dataclasses import replace
from math import hypot

import numpy as np
import pytest

from logtrain.planning.cost import Workload
from logtrain.planning.gpu import Range
from logtrain.planning.gpu_file import read_gpu
from logtrain.planning.interval import Interval, step_interval
from tests.support.planning import op

GPU = replace(read_gpu("h100-sxm"), host=0.0, launch=0.0)
WORKLOAD = Workload(np.array([8192]))
PRODUCT = op("product", shape=(1 << 14, 1 << 14, 1 << 14, 1))
COPY = op("pointwise", read=27 * 10**9, written=27 * 10**9)  # 20 ms at 2.7 TB/s


def test_a_range_moves_what_rests_on_it():
    gpu = replace(GPU, ranges={"product": Range(0.8, 1.1)})
    low, middle, high = step_interval([PRODUCT], [1], gpu, WORKLOAD)
    assert (low, middle, high) == pytest.approx([2 * (1 << 42) / (share * GPU.product) for share in (1.1, 1, 0.8)])
    assert step_interval([COPY], [1], gpu, WORKLOAD) == pytest.approx([0.02] * 3)


def test_independent_causes_add_in_quadrature_and_one_cause_at_once():
    product = 2 * (1 << 42) / GPU.product
    apart = replace(GPU, ranges={"product": Range(0.8, 1), "bandwidth": Range(0.5, 1)})
    low, middle, high = step_interval([PRODUCT, COPY], [1], apart, WORKLOAD)
    assert (low, middle) == pytest.approx([product + 0.02] * 2)
    assert high - middle == pytest.approx(hypot(product / 4, 0.02))
    compiled = op("pointwise", read=23 * 10**9, written=23 * 10**9)
    compiled.name = "compiled"
    together = replace(GPU, ranges={"bandwidth": Range(0.5, 1), "compiled_bandwidth": Range(0.5, 1)})
    low, middle, high = step_interval([COPY, compiled], [1], together, WORKLOAD)
    assert high - middle == pytest.approx(0.02 + 0.02)


def test_an_interval_says_no_more_than_is_known():
    assert str(Interval(10_612.3, 11_533.7, 12_388.8)) == "11,500 (10,600-12,400)"
    assert str(Interval(5.76, 6.18, 6.70)) == "6.2 (5.8-6.7)"
    assert str(Interval(0.0412, 0.0434, 0.0461)) == "0.043 (0.041-0.046)"
    assert str(Interval(2.0, 2.0, 2.0)) == "2.00 (2.00-2.00)"
    seconds = Interval(1.0, 2.0, 4.0)
    assert seconds.per(8.0) == Interval(2.0, 4.0, 8.0)
    assert seconds.holds(3.9)
    assert not seconds.holds(0.9)
