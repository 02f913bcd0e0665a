"""What is said of a run's health: what is wrong, once, and nothing else."""

import math
import random
import shutil

import pytest

from logtrain.observe import health
from logtrain.observe.config import HealthConfig
from logtrain.observe.health import Health


def healthy(nodes: int = 4, **changed: float) -> Health:
    return Health(HealthConfig(**changed), [f"node{rank}" for rank in range(nodes)])


def losses(seed: int, count: int = 400) -> list[float]:
    """A falling loss with the noise of small steps."""
    drawn = random.Random(seed)
    return [3 * math.exp(-step / 100) + 1 + drawn.gauss(0, 0.05) for step in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_every_planted_spike_is_named_and_nothing_else(seed):
    checks, values = healthy(), losses(seed)
    planted = random.Random(seed).sample(range(60, 400), 3)
    for step in planted:
        values[step] += 2
    found = [event for step, loss in enumerate(values) for event in checks.spikes(step, {"loss": loss})]
    assert sorted(event.step for event in found) == sorted(planted)
    assert all(event.kind == "spike" and f"at step {event.step}" in event.text for event in found)


def test_a_norm_that_is_not_finite_is_no_spike_and_spoils_none():
    checks = healthy()
    for step in range(60):
        assert not list(checks.spikes(step, {"gradient norm": math.nan if step % 7 == 3 else 1 + 0.01 * (step % 5)}))
    (event,) = checks.spikes(60, {"gradient norm": 9.0})
    assert event.text.startswith("gradient norm 9 at step 60, 1.0")


def test_equal_values_make_no_spike_of_rounding():
    checks = healthy()
    found = [event for step in range(99) for event in checks.spikes(step, {"loss": 2.0 + 1e-6 * (step % 2)})]
    assert not found


def test_zero_switches_a_check_off():
    checks = healthy(spike=0, straggler=0, data_wait=0, disk=0)
    for step in range(50):
        assert not list(checks.spikes(step, {"loss": 2.0 + 100 * (step == 40)}))
        assert not list(checks.stragglers(step, [1, 1, 1, 9]))
        assert not list(checks.waits(step, 1, 1))
        assert not list(checks.disk(step, "/", 1 << 60))


def test_a_straggler_is_named_once_with_rank_node_and_factor_and_again_when_it_comes_back():
    checks = healthy()
    slow, even = [1.0, 1.02, 0.99, 1.5], [1.0, 1.02, 0.99, 1.1]
    said = [list(checks.stragglers(step, slow)) for step in range(7)]
    assert [len(events) for events in said] == [0, 0, 0, 0, 1, 0, 0]
    assert said[4][0].text.startswith("rank 3 on node3 computes for 1.50 times as long")
    assert not list(checks.stragglers(6, even))
    assert [len(list(checks.stragglers(step, slow))) for step in range(7, 12)] == [0, 0, 0, 0, 1]


def test_a_single_slow_record_is_no_straggler():
    checks = healthy()
    for step in range(40):
        assert not list(checks.stragglers(step, [1, 1, 1, 3 if step % 4 == 0 else 1]))
    assert not list(healthy(1).stragglers(1, [5.0]))


def test_waiting_for_data_and_a_disk_that_fills(monkeypatch):
    checks = healthy(data_wait=0.2, disk=3)
    assert not list(checks.waits(10, 0.19, 1.0))
    (event,) = checks.waits(20, 0.5, 1.0)
    assert (event.kind, event.step) == ("data_wait", 20) and "50%" in event.text
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(health, "disk_usage", lambda _: usage._replace(free=10_000))
    assert not list(checks.disk(1, "/runs", 3_333))
    (event,) = checks.disk(2, "/runs", 3_334)
    assert "10 kB free" in event.text.replace("10.0", "10")
    monkeypatch.setattr(health, "disk_usage", lambda _: (_ for _ in ()).throw(OSError("gone")))
    assert not list(checks.disk(3, "/runs", 3_334))


@pytest.mark.parametrize("flags", [{"spike": -1}, {"straggler": 0.5}, {"disk": math.inf}])
def test_thresholds_that_mean_nothing_are_refused(flags):
    with pytest.raises(ValueError, match=f"health.{next(iter(flags))}"):
        HealthConfig(**flags)
