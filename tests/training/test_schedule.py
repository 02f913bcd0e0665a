"""The learning rate of every step, held against what the settings' help says of the first and the last."""

import pytest

from logtrain.training.config import OptimConfig


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("total", [2, 3, 10, 106, 10_000])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_the_last_step_has_the_share_of_the_peak_that_was_asked_for(schedule, total, ratio):
    config = OptimConfig(lr=3e-4, schedule=schedule, min_lr_ratio=ratio)
    assert config.lr_at(total - 1, total) == pytest.approx(3e-4 * ratio, abs=1e-18)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_to_the_peak_and_never_after(schedule):
    config = OptimConfig(lr=2.0, schedule=schedule, warmup_ratio=0.25, min_lr_ratio=0.1)
    rates = [config.lr_at(step, 20) for step in range(20)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])  # its first step already moves
    assert rates[5] == pytest.approx(2.0)  # the first after the warm-up has the peak
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_linear_decay_is_a_straight_line():
    config = OptimConfig(lr=1.0, schedule="linear", warmup_ratio=0.1, min_lr_ratio=0.1)
    assert [config.lr_at(step, 10) for step in range(1, 10)] == pytest.approx([1 - 0.9 * i / 8 for i in range(9)])


def test_a_run_of_one_step_trains():
    assert OptimConfig(lr=1.0, warmup_ratio=0).lr_at(0, 1) == 1.0
    assert OptimConfig(lr=1.0).lr_at(0, 1) == 1.0


def test_constant_is_constant_after_the_warm_up():
    config = OptimConfig(lr=1.0, schedule="constant", warmup_ratio=0.1, min_lr_ratio=0.5)
    assert {config.lr_at(step, 100) for step in range(10, 100)} == {1.0}


def test_a_warm_up_of_steps_counts_before_that_of_a_share():
    config = OptimConfig(lr=1.0, schedule="constant", warmup_ratio=0.5, warmup_steps=4)
    assert [config.lr_at(step, 100) for step in (0, 3, 4)] == [0.25, 1.0, 1.0]
    with pytest.raises(ValueError, match="warmup_steps = -1"):
        OptimConfig(warmup_steps=-1)
