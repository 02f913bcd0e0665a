"""Attacks one after the other, and what came of them."""

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from random import Random

from tests.storm import corruption, full_disk, hostile, kill
from tests.storm.execution import ALL
from tests.storm.ground import Ground
from tests.storm.outcome import BAD, Outcome

KINDS = {module.KIND: module for module in (kill, corruption, full_disk, hostile)}
WEIGHTS = {"kill": 2, "corruption": 6, "full disk": 1, "hostile": 2}


def storm(ground: Ground, seed: int, seconds: float, kinds: list[str], only: int | None = None) -> Iterator[Outcome]:
    """Attacks of these kinds until the time is over, or the one with the number `only`."""
    if "full disk" in kinds and not full_disk.is_possible(ground.folder / "probe"):
        print("full disk: left out, for this process may not mount a tmpfs", file=sys.stderr)
        kinds = [kind for kind in kinds if kind != "full disk"]
    began, number = time.monotonic(), 0 if only is None else only
    while time.monotonic() - began < seconds:
        random = Random(f"{seed} {number}")
        kind = random.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
        outcome = KINDS[kind].attack(ground, random)
        if outcome.verdict in BAD:
            shutil.copy(ground.output, ground.folder / f"said-{number}")
        yield outcome._replace(what=f"{number} {outcome.what}")
        if only is not None:
            print(ground.output.read_text(errors="backslashreplace"))
            return
        number += 1


def part(given: argparse.Namespace, seed: int, folder: Path, found: Queue) -> None:
    """A storm of this seed in a folder of its own; its lines are printed, its counts and sums put into `found`."""
    counts, ground = Counter(), Ground(folder)
    ALL.clear()
    longest: dict[str, tuple[float, str]] = {}  # by kind: the seconds of the longest command, and in which attack
    for outcome in storm(ground, seed, 60 * given.minutes, given.kinds, given.attack):
        counts[outcome.kind, outcome.verdict] += outcome.number
        longest[outcome.kind] = max(
            longest.get(outcome.kind, (0.0, "")), (ALL.pop("longest", 0.0), f"seed {seed}: {outcome.what}"[:200])
        )
        mark = "!!" if outcome.verdict in BAD else "  "
        detail = f" ({outcome.detail})" if outcome.detail else ""
        print(f"{mark} seed {seed}: {outcome.kind}: {outcome.what} -> {outcome.verdict}{detail}"[:400], flush=True)
    found.put((counts, dict(ALL), longest))
