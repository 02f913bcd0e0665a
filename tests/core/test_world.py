"""What a rank is told of its place by whoever starts it."""

import pytest

from logtrain.core.world import World


@pytest.mark.parametrize("given", [("RANK",), ("RANK", "LOCAL_RANK"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")])
def test_half_a_place_among_the_ranks_is_refused(monkeypatch, given: tuple[str, ...]):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in given:
        monkeypatch.setenv(name, "0")
    missing = next(name for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if name not in given)
    with pytest.raises(ValueError, match=f"WORLD_SIZE is set, {missing}.* not; start the ranks by launch/run.sh"):
        World(on_cpu=True)
