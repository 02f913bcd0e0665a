"""Operations side by side on a pretended GPU."""

from dataclasses import replace

import numpy as np
import pytest

from logtrain.planning.cost import Workload, seconds
from logtrain.planning.gpu_file import read_gpu
from logtrain.planning.timeline import breakdown, simulate
from tests.support.planning import op


def test_streams_overlap_and_share():
    """Two products of a second, beside a collective of one, then one that waits for it."""
    gpu, workload = replace(read_gpu("h100-sxm"), host=0.0), Workload(np.array([100]))
    product = {"shape": (1 << 17, 1 << 14, 1 << 14, 1)}
    ranks = tuple(range(8))
    a_product = seconds(op("product", **product), gpu, workload)
    size = round(a_product * gpu.links[-1].bandwidth * 8 / 7)  # so large that no other rate counts
    gather = op("all_gather", "all-gather", shape=ranks, written=size)
    ops = [gather, op("product", **product), op("product", waits=(0,), **product)]
    timeline = simulate(ops, gpu, workload)
    slow = gpu.beside_product
    assert timeline.end[0] == pytest.approx(a_product, rel=1e-6)
    assert timeline.end[1] == pytest.approx(a_product * (1 + 1 - 1 / slow), rel=1e-6)  # slower until the gather ends
    assert timeline.end[2] == pytest.approx(timeline.end[1] + a_product, rel=1e-6)
    total, parts = breakdown(ops, [1], timeline)
    assert total == pytest.approx(timeline.end[2])
    assert parts["gemm"] == pytest.approx(2 * a_product)
    by_engines = simulate(ops, gpu, Workload(np.array([100]), by_copy_engines=("all_gather",)))
    assert by_engines.end[2] == pytest.approx(2 * a_product, rel=1e-6)
