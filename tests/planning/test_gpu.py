"""Descriptions of GPUs: the rates at the points they were measured at, and one-line errors of files."""

from pathlib import Path

import numpy as np
import pytest

from logtrain.planning.cost import collective_seconds, product_seconds
from logtrain.planning.gpu_file import GPUS, read_gpu
from tests.support.planning import op


@pytest.mark.parametrize("path", sorted(GPUS.glob("*.toml")), ids=lambda path: path.stem)
def test_rates_where_they_were_measured(path: Path):
    gpu = read_gpu(path.stem)
    square = op("product", shape=(8192, 8192, 8192, 1))
    assert 2 * 8192**3 / product_seconds(square, gpu) == pytest.approx(gpu.product)
    for kernel, sizes in gpu.attention.items():
        for size, table in sizes.items():
            for length, forward, backward in table:
                assert gpu.attention_rate(kernel, size, np.array([length]), False)[0] == pytest.approx(forward)
                assert gpu.attention_rate(kernel, size, np.array([length]), True)[0] == pytest.approx(backward)
            assert gpu.attention_rate(kernel, size, np.array([200]), False)[0] < table[0][1]
    assert set(gpu.ranges) >= {"product", "bandwidth", "attention", "links", "network", "beside_product"}


def test_products_by_power_and_by_waves():
    """Large ones take their FLOPs at the power limit, full waves or not; in one of few tiles idle processors cost."""
    gpu = read_gpu("h100-sxm")
    m, n = gpu.tile[0] * 4, gpu.tile[1] * 33  # 132 tiles
    for rows in (m * 8, m * 8 + 128):  # a wave more for one row of tiles
        assert gpu.product_rate_seconds(rows, n, 4096) == pytest.approx(2 * rows * n * 4096 / gpu.product)
    full, one_more = (gpu.product_rate_seconds(m + rows, n, 4096) for rows in (0, 1))
    assert one_more > 1.5 * full
    # fast.cu and torch-performance-test-data: 677 of 2048^3, 716 and 789 of 4096^3, in bursts
    for side, least, most in ((2048, 600e12, 720e12), (4096, 710e12, 800e12)):
        assert least < 2 * side**3 * gpu.wave_rate / gpu.padded_flops(side, side, side) < most


def test_small_heads_are_slower():
    gpu, length = read_gpu("h100-sxm"), np.array([2048])
    for kernel in gpu.attention:
        rates = [gpu.attention_rate(kernel, size, length, backward=False)[0] for size in (64, 96, 128, 256)]
        assert rates[0] < rates[2] == rates[1] == rates[3]


@pytest.mark.parametrize(
    ("ranks", "size", "bus"),
    [
        (range(8), 128 * 2**20, 305e9),  # NVIDIA/Megatron-LM pull 5596
        (range(8), 2 * 2**20, 92e9),  # 20 us
        (range(16), 4 * 2**30, 320e9),  # two whole nodes
        (range(0, 64, 8), 4 * 2**30, 45e9),  # replicas: one GPU a node, each with its adapter
        (range(0, 64, 4), 4 * 2**30, 90e9),  # two GPUs a node
    ],
)
def test_the_published_bus_bandwidths(ranks, size, bus):
    gathered = op("all_gather", shape=tuple(ranks), written=size)
    seconds = collective_seconds(gathered, read_gpu("h100-sxm"))
    assert size * (len(ranks) - 1) / len(ranks) / seconds == pytest.approx(bus, rel=0.02)


def test_a_small_collective_is_all_latency():
    gpu = read_gpu("h100-sxm")
    taken = [collective_seconds(op("all_gather", shape=tuple(range(8)), written=size), gpu) for size in (64, 2**21)]
    assert taken[0] == pytest.approx(taken[1]) == pytest.approx(20e-6, rel=0.02)


EXAMPLE = (GPUS / "h100-sxm.toml").read_text()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('name = "H100 SXM 80 GB"', "", "name: expected a string"),
        ("value = 132", "value = 132.5", r"\[processors\] 132.5: expected an integer"),
        ("value = 2.7e12", "value = 0", r"\[bandwidth\] 0: expected a number > 0"),
        ("value = 2.7e12", 'value = "fast"', r"\[bandwidth\] fast: expected a number"),
        ("low = 2.3e12\n", "", r"\[bandwidth\] low = None, high = .*: expected 0 < low <= 2.7e\+12 <= high"),
        ("low = 2.3e12", "low = 2.8e12", r"\[bandwidth\] low = 2800000000000.0, high"),
        ("high = 1.03", "high = 0.5", r"\[links\] low = 0.9, high = 0.5: expected 0 < low <= 1 <= high"),
        ("value = 1.35", "value = 0.5", r"\[beside_product\] 0.5: expected a number >= 1"),
        ("2097152 = [92e9]", "2097152 = 92e9", r"\[links\] 2097152 = 92000000000.0: expected size = \[1 rates"),
        ("[attention.fa3.64]", "[attention.fa3.small]", r"\[attention.fa3\] needs a table for each head size"),
        ("value = [128, 256, 64]", "value = [128, 256]", r"\[tile\] \[128, 256\]: expected three integers"),
        ("[host]", "[hosts]", r"\[host\] needs a value and its source"),
        ("512 = [292e12, 170e12]", "512 = [292e12]", r"\[attention.fa3.128\] 512 = .*: expected size = \[2 rates"),
        ("[attention.fa2.128]", "fa2 =", "not TOML"),
        ('"H100 SXM', '"X100 SXM', "the peak of X100 SXM 80 GB is not known"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(tmp_path, before, after, words):
    path = tmp_path / "mine.toml"
    assert before in EXAMPLE
    path.write_text(EXAMPLE.replace(before, after, 1))
    with pytest.raises(ValueError, match=words) as error:
        read_gpu(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_file_may_give_the_peak_of_a_gpu_that_is_not_known(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(EXAMPLE.replace("H100 SXM", "X100 SXM") + '\n[peak]\nvalue = 1e15\nsource = "datasheet"\n')
    assert read_gpu(str(path)).peak == 1e15
    assert read_gpu("h100-sxm").peak == 989.4e12


def test_a_gpu_without_a_source_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text((GPUS / "h100-sxm.toml").read_text().replace("high = 365e9\nsource", "high = 365e9\nno"))
    with pytest.raises(ValueError, match=r"\[network\] needs a value and its source"):
        read_gpu(str(path))
