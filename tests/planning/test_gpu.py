"""Descriptions of GPUs: the rates at the points they were measured at, and one-line errors of files."""

from pathlib import Path

import numpy as np
import pytest

from logtrain.planning.cost import collective_seconds, product_seconds
from logtrain.planning.gpu import GPUS, read_gpu
from tests.support.planning import op


@pytest.mark.parametrize("path", sorted(GPUS.glob("*.toml")), ids=lambda path: path.stem)
def test_rates_where_they_were_measured(path: Path):
    gpu = read_gpu(path.stem)
    square = op("product", shape=(8192, 8192, 8192, 1))
    assert 2 * 8192**3 / product_seconds(square, gpu) == pytest.approx(gpu.product)
    for kernel, table in gpu.attention.items():
        for length, forward, backward in table:
            assert gpu.attention_rate(kernel, np.array([length]), False)[0] == pytest.approx(forward)
            assert gpu.attention_rate(kernel, np.array([length]), True)[0] == pytest.approx(backward)
        assert gpu.attention_rate(kernel, np.array([200]), False)[0] < table[0][1]


def test_the_published_bandwidth_at_128_mib():
    gathered = op("all_gather", shape=tuple(range(8)), written=128 * 2**20)
    bus = 128 * 2**20 * 7 / 8 / collective_seconds(gathered, read_gpu("h100-sxm"))
    assert bus == pytest.approx(305e9, rel=0.01)


EXAMPLE = (GPUS / "h100-sxm.toml").read_text()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('name = "H100 SXM 80 GB"', "", "name: expected a string"),
        ("value = 132", "value = 132.5", r"\[processors\] 132.5: expected an integer"),
        ("value = 2.9e12", "value = 0", r"\[bandwidth\] 0: expected a number > 0"),
        ("value = 2.9e12", 'value = "fast"', r"\[bandwidth\] fast: expected a number"),
        ("value = [128, 256, 64]", "value = [128, 256]", r"\[tile\] \[128, 256\]: expected three integers"),
        ("[host]", "[hosts]", r"\[host\] needs a value and its source"),
        ("512 = [292e12, 258e12]", "512 = [292e12]", r"\[attention.fa3\] 512 = .*: expected length = "),
        ("[attention.fa2]", "fa2 =", "not TOML"),
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
    path.write_text((GPUS / "h100-sxm.toml").read_text().replace("value = 370e9\nsource", "value = 370e9\nno"))
    with pytest.raises(ValueError, match=r"\[links\] needs a value and its source"):
        read_gpu(str(path))
