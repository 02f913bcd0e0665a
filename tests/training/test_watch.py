"""The health of real runs: a slow rank and a spike are named, and observation changes no loss."""

import json
import time

import pytest

from logtrain.model import llama
from tests.support.ranks import Ranks
from tests.support.synthetic import write_data, write_model
from tests.support.training import records, train


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("watch")
    model = write_model(folder / "model", hidden_size=32, intermediate_size=48, vocab_size=130, num_attention_heads=4)
    data = write_data(folder / "data", model, seq_len=32, lengths={"train": [30] * 240})
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--loader.seq_len", "32"]
    return [*flags, "--loader.rows_per_step", "4", "--trainer.log_every", "5", "--optim.lr", "1e-3"]


def events(runs) -> list[dict]:
    return [json.loads(line) for line in (runs / "run" / "events.jsonl").read_text().splitlines()]


def slow_train(flags: list[str], slow_rank: int) -> int:
    """A run in which one rank's blocks take long, after the weights are there and before the next gathering."""
    import os

    forward = llama.Block.forward

    def slowed(*args):
        time.sleep(0.02 if int(os.environ["RANK"]) == slow_rank else 0)
        return forward(*args)

    llama.Block.forward = slowed
    try:
        return train(flags)
    finally:
        llama.Block.forward = forward


@pytest.mark.slow
def test_a_slow_rank_is_named_by_all_ranks_timings(flags, ranks: Ranks, tmp_path):
    wanted = [*flags, "--runs", str(tmp_path), "--trainer.max_steps", "30", "--health.straggler", "3"]
    assert ranks.run(2, slow_train, wanted, 1) == [0, 0]
    (event,) = [event for event in events(tmp_path) if event["kind"] == "straggler"]
    assert event["text"].startswith("rank 1 on ") and event["step"] == 25
    assert time.time() - 120 < event["time"] <= time.time()


def test_a_spike_between_two_records_is_named_and_nothing_changes_the_losses(flags, tmp_path, monkeypatch):
    """With a rate that jumps at step 43 the loss of step 44 is far above the others."""
    from logtrain.training.step import TrainStep

    usual = TrainStep.lr_at
    monkeypatch.setattr(TrainStep, "lr_at", lambda self, number: 0.5 if number == 42 else usual(self, number))
    wanted = [*flags, "--trainer.max_steps", "47"]
    assert train([*wanted, "--runs", str(tmp_path / "on")]) == 0
    named = {event["step"] for event in events(tmp_path / "on") if event["kind"] == "spike"}
    assert min(named) == 44
    assert train([*wanted, "--runs", str(tmp_path / "off"), "--health.spike", "0"]) == 0
    assert not [event for event in events(tmp_path / "off") if event["kind"] == "spike"]
    series = [[(r["loss"], r["grad_norm"]) for r in records(tmp_path / kind / "run")] for kind in ("on", "off")]
    assert series[0] == series[1]
