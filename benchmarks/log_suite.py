"""Cuts LogLM's published instructions into training data and the sets of launch/suites/logs.toml, systems kept apart.

    python benchmarks/log_suite.py --loglm DIR --output DIR --rows 40

DIR has loglm_instruction_2632.json and log_interpretation_test.json of lunyiliu/LogLM, whose rows are sorted by source:
lines of Spirit and BGL with whether they are normal, then lines of seven systems with their templates. Whole systems
are left out of training, so that a suite can tell what was learned from what carries over; `logtrain benchmark` is told
which by `--unseen Spirit Linux Proxifier`. Of the other systems, training lacks the lines that a set has, but not other
lines of the same templates: these are what a model can learn of a system.
"""

import argparse
import json
import random
from pathlib import Path

from logtrain.core.atomic import write_file

ANOMALY = {"Spirit": range(900, 1038), "BGL": range(1038, 1232)}
PARSING = {
    system: range(1232 + 200 * i, 1432 + 200 * i)
    for i, system in enumerate(("HDFS", "Hadoop", "Zookeeper", "BGL", "HPC", "Linux", "Proxifier"))
}
UNSEEN = {"anomaly": ("Spirit",), "parsing": ("Linux", "Proxifier")}
Row = dict[str, str]


def chosen(rows: list[Row], number: int, seed: str) -> list[Row]:
    """So many of the rows, first of each different output the same number, so that rare labels are among them."""
    by_output: dict[str, list[Row]] = {}
    for row in random.Random(seed).sample(rows, len(rows)):
        by_output.setdefault(row["output"], []).append(row)
    taken: list[Row] = []
    while len(taken) < min(number, len(rows)):
        for left in by_output.values():
            if left and len(taken) < number:
                taken.append(left.pop())
    return taken


def sets_of(instructions: list[Row], number: int) -> dict[str, list[Row]]:
    """The rows of each set: `number` of each system, with its name."""
    found: dict[str, list[Row]] = {}
    for name, places in (("anomaly", ANOMALY), ("parsing", PARSING)):
        found[name] = [
            {**row, "system": system}
            for system, place in places.items()
            for row in chosen([instructions[i] for i in place], number, f"{name} {system}")
        ]
    return found


def training_rows(instructions: list[Row], sets: dict[str, list[Row]]) -> list[Row]:
    """What is left to train on: rows of no unseen system, and no line that a set has."""
    unseen = {
        i for name, places in (("anomaly", ANOMALY), ("parsing", PARSING)) for s in UNSEEN[name] for i in places[s]
    }
    tested = {row["input"] for rows in sets.values() for row in rows}
    return [row for i, row in enumerate(instructions) if i not in unseen and row["input"] not in tested]


def main() -> None:
    """Write train.json and a file for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loglm", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=40, help="of each system, and of interpretations")
    flags = parser.parse_args()
    instructions = json.loads((flags.loglm / "loglm_instruction_2632.json").read_text(encoding="utf-8"))
    interpretations = json.loads((flags.loglm / "log_interpretation_test.json").read_text(encoding="utf-8"))
    sets = sets_of(instructions, flags.rows)
    flags.output.mkdir(parents=True, exist_ok=True)
    files = {**sets, "interpretation": interpretations[: flags.rows], "train": training_rows(instructions, sets)}
    for name, rows in files.items():
        write_file(flags.output / f"{name}.json", json.dumps(rows, indent=1).encode())
        print(f"{flags.output / name}.json: {len(rows):,} rows")


if __name__ == "__main__":
    main()
