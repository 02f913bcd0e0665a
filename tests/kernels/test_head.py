"""The head at Llama-3.1-8B's size: what its loss holds beside inputs and gradients, traced, and its predicted time."""

import json
import sys

import pytest

from benchmarks import head
from logtrain.planning.gpu_file import read_gpu
from tests.support.precision import NEEDS_2_13

pytestmark = NEEDS_2_13  # what the head would do on a GPU is traced on fake tensors


@pytest.mark.parametrize("tokens", [8_192, 16_384, 65_536])
def test_beside_inputs_and_gradients_it_holds_about_one_chunk(tokens):
    memory = head.traced(tokens, 4_096, 128_256)
    assert 0.9 < memory.extra_gib <= 1.1  # whole logits: 2 to 16 GiB


def test_the_prediction_adds_up_and_is_as_fast_as_the_best_at_full_clocks(capsys, monkeypatch):
    """4.50 us: Liger CuTe and QuACK on an H200."""
    monkeypatch.setattr(sys, "argv", ["head", "--json"])
    head.main()
    result = json.loads(capsys.readouterr().out)
    (full_low, full, full_high), (_, limited, _) = (
        result["microseconds_per_token"][name] for name in ("full clocks", "power limit")
    )
    assert limited == pytest.approx(sum(result["parts"].values()))
    assert result["parts"]["products"] == pytest.approx(6 * 4_096 * 128_256 / read_gpu("h200").product * 1e6)
    assert full_low < full < full_high < limited
    assert full_low <= 4.5
