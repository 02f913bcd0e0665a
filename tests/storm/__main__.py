"""python -m tests.storm: see the package's docstring."""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.storm import corruption, full_disk, hostile, kill
from tests.storm.execution import ALL
from tests.storm.ground import Ground
from tests.storm.outcome import BAD, GOOD, Outcome

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


def table(counts: Counter[tuple[str, str]]) -> str:
    """Counts by kind and verdict."""
    verdicts = [verdict for verdict in GOOD + BAD if any(found == verdict for _, found in counts)]
    lines = ["".join(f"{cell:>12}" for cell in ("", *verdicts))]
    for kind in dict.fromkeys(kind for kind, _ in counts):
        lines.append(f"{kind:>12}" + "".join(f"{counts[kind, verdict]:>12,}" for verdict in verdicts))
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """-> 0 where nothing bad was found, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description="Attacks on every command.")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attack", type=int, help="only the attack of this number")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--folder", type=Path, help="where; the output of what went wrong stays there")
    given = parser.parse_args(argv)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="storm-"))
    shutil.rmtree(folder, ignore_errors=True)
    counts, ground = Counter(), Ground(folder)
    ALL.clear()
    for outcome in storm(ground, given.seed, 60 * given.minutes, given.kinds, given.attack):
        counts[outcome.kind, outcome.verdict] += outcome.number
        mark = "!!" if outcome.verdict in BAD else "  "
        detail = f" ({outcome.detail})" if outcome.detail else ""
        print(f"{mark} {outcome.kind}: {outcome.what} -> {outcome.verdict}{detail}"[:400], flush=True)
    print(table(counts))
    print(f"seed {given.seed}; {ALL['commands']:,} commands took {ALL['seconds']:,.0f} s; {folder}")
    busy = ALL["waited"] / max(ALL["seconds"], 1e-9)
    print(f"in {busy:.0%} of these, which count for no command, no processor was free; the longest took")
    print(f"{ALL['longest']:.1f} s without them, the most memory was {ALL['peak']:.2f} GiB")
    return int(any(verdict in BAD for _, verdict in counts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
