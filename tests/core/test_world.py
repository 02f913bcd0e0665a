"""What a rank is told of its place by whoever starts it."""

import shutil
import subprocess
import sys

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


def test_a_machine_without_any_network_is_named():
    """Where `lo` is down, in a namespace of its own: gloo finds no interface, even for a rank that is alone."""
    alone = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("needs namespaces of networks")
    code = "from logtrain.core import entry, world; entry.run(lambda argv: world.World(on_cpu=True).close())"
    done = subprocess.run([*alone, sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no network interface is up, not even lo" in told and told.endswith("start the container with a network")
