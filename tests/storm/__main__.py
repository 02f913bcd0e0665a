"""python -m tests.storm: see the package's docstring."""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

from tests.storm.outcome import BAD, GOOD
from tests.storm.running import KINDS, part


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
    parser.add_argument(
        "--processes", type=int, default=1, help="so many storms at once, of this seed and the next ones"
    )
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--folder", type=Path, help="where; the output of what went wrong stays there")
    given = parser.parse_args(argv)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="storm-"))
    shutil.rmtree(folder, ignore_errors=True)
    seeds = range(given.seed, given.seed + given.processes)
    found = get_context("spawn").Queue()
    parts = [get_context("spawn").Process(target=part, args=(given, seed, folder / str(seed), found)) for seed in seeds]
    for one in parts:
        one.start()
    while any(one.is_alive() for one in parts) and found.qsize() < len(parts):
        time.sleep(0.1)
    told = [found.get() for _ in range(found.qsize())]
    for one in parts:
        one.join()
    counts = sum((counts for counts, _, _ in told), Counter())
    every = {name: [sums.get(name, 0.0) for _, sums, _ in told] for name in ("commands", "seconds", "waited")}
    commands, seconds, waited = map(sum, every.values())
    peak = max((sums.get("peak", 0.0) for _, sums, _ in told), default=0.0)
    print(table(counts))
    print(f"seeds {', '.join(map(str, seeds))}; {commands:,.0f} commands took {seconds:,.0f} s; {folder}")
    print(f"in {waited / max(seconds, 1e-9):.0%} of these, which count for no command, no processor was free;")
    print(f"the most memory of a command was {peak:.2f} GiB; the longest of each kind without them:")
    for kind in dict.fromkeys(kind for _, _, longest in told for kind in longest):
        took, what = max(longest[kind] for _, _, longest in told if kind in longest)
        print(f"{kind:>12} {took:6.1f} s  {what}")
    return int(len(told) < len(parts) or any(verdict in BAD for _, verdict in counts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
