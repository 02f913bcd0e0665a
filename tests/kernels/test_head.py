"""The head at Llama-3.1-8B's size: what its loss holds beside inputs and gradients, traced, and its predicted time."""

import json
import sys

import pytest

from benchmarks import head
from tests.support.precision import NEEDS_2_13

pytestmark = NEEDS_2_13  # what the head would do on a GPU is traced on fake tensors


@pytest.mark.parametrize("tokens", [8_192, 16_384, 65_536])
def test_beside_inputs_and_gradients_it_holds_about_one_chunk(tokens):
    memory = head.traced(tokens, 4_096, 128_256)
    assert 0.9 < memory.extra_gib <= 1.1  # whole logits: 2 to 16 GiB


def test_the_prediction_is_below_six_microseconds_a_token_and_adds_up(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["head", "--json"])
    head.main()
    result = json.loads(capsys.readouterr().out)
    assert result["microseconds_per_token"] == pytest.approx(sum(result["parts"].values()))
    assert result["parts"]["products"] == pytest.approx(6 * 4_096 * 128_256 / head.GEMM_FLOPS * 1e6)
    assert result["microseconds_per_token"] <= 6.0
