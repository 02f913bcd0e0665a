"""The learning rate of every step, held against what the settings' help says of the first and the last."""

import math

import pytest

from logtrain.training.optim_config import OptimConfig


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


def test_wsd_rises_stays_and_falls_at_the_steps_that_it_says():
    """Of 100 steps 10 rise and 20 fall: the first and the last of each part, by hand."""
    config = OptimConfig(lr=2.0, schedule="wsd", warmup_ratio=0.1, decay_ratio=0.2, min_lr_ratio=0.25)
    rates = [config.lr_at(step, 100) for step in range(100)]
    assert rates[:2] == pytest.approx([0.2, 0.4])
    assert rates[8] == pytest.approx(1.8)
    assert set(rates[9:80]) == {2.0}  # the last of the warm-up, all that are stable, the last of these
    assert rates[80] == pytest.approx(0.5 + 1.5 * (1 - math.sqrt(1 / 20)))
    assert rates[84] == pytest.approx(0.5 + 1.5 * (1 - 0.5))  # a quarter of the decay is over
    assert rates[99] == pytest.approx(0.5)
    assert rates[80:] == sorted(rates[80:], reverse=True)


def test_wsd_without_decay_is_constant_and_with_decay_alone_has_no_stable_step():
    stable = OptimConfig(lr=1.0, schedule="wsd", warmup_ratio=0.1, decay_ratio=0.0, min_lr_ratio=0.5)
    assert {stable.lr_at(step, 50) for step in range(5, 50)} == {1.0}
    falling = OptimConfig(lr=1.0, schedule="wsd", warmup_ratio=0.1, decay_ratio=0.9)
    assert falling.lr_at(0, 10) == 1.0  # the warm-up's only step
    assert falling.lr_at(1, 10) == pytest.approx(1 - math.sqrt(1 / 9))
    assert falling.lr_at(9, 10) == 0.0
    late = OptimConfig(lr=1.0, schedule="wsd", warmup_steps=8, decay_ratio=0.9)
    assert [late.lr_at(step, 10) for step in (7, 8, 9)] == pytest.approx([1.0, 1 - math.sqrt(0.5), 0.0])
    assert OptimConfig(lr=1.0, schedule="wsd", warmup_ratio=0).lr_at(0, 1) == 1.0


def test_warm_up_and_decay_that_are_more_than_the_run_are_refused():
    with pytest.raises(ValueError, match=r"warmup_ratio = 0.5 and optim.decay_ratio = 0.6 are more than the whole run"):
        OptimConfig(schedule="wsd", warmup_ratio=0.5, decay_ratio=0.6)
    OptimConfig(schedule="cosine", warmup_ratio=0.5, decay_ratio=0.6)  # which has no decay of its own
