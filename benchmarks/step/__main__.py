"""Training speed beside transformers' Trainer: `python -m benchmarks.step [--rounds 3] [--json]` (extra "bench").

Both train the same tiny Llama on the CPU with 2 threads: the same weights, packed rows, optimizer and clipping, each in
a process of its own, taking turns; medians over the rounds. Peak memory is the most the process held above what it held
before the model. The losses must agree, for a fast wrong step counts for nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.step.recipe import ATTENTIONS, CONFIG, STEPS, Attention, Measurement

Library = Literal["logtrain", "transformers"]
LIBRARIES: tuple[Library, ...] = get_args(Library)
Rounds = dict[tuple[Attention, Library], list[Measurement]]


@dataclass(frozen=True)
class Row:
    """The medians of a library's rounds, and its losses beside ours."""

    attention: Attention
    library: Library
    tokens_per_second: float
    memory_gib: float
    first_loss: float
    last_loss: float
    largest_loss_difference: float


def measure(folder: Path, library: Library, attention: Attention) -> Measurement:
    """Train in a process of its own, on the model in `folder`."""
    command = [sys.executable, "-m", f"benchmarks.step.{library}_worker", str(folder), attention]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_rounds(number: int) -> Rounds:
    """Measure each library with each attention so many times, taking turns."""
    rounds: Rounds = {(attention, library): [] for attention in ATTENTIONS for library in LIBRARIES}
    with tempfile.TemporaryDirectory() as name:
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**CONFIG)).save_pretrained(name)
        for _ in range(number):
            for (attention, library), measured in rounds.items():
                measured.append(measure(Path(name), library, attention))
    return rounds


def rows_of(rounds: Rounds) -> list[Row]:
    """A row for each attention and library. Ends the program where the losses of the libraries differ."""
    rows = []
    for (attention, library), measured in rounds.items():
        ours, losses = rounds[attention, "logtrain"][0]["losses"], measured[0]["losses"]
        rows.append(
            Row(
                attention=attention,
                library=library,
                tokens_per_second=statistics.median(r["tokens_per_second"] for r in measured),
                memory_gib=statistics.median(r["memory_gib"] for r in measured),
                first_loss=losses[0],
                last_loss=losses[-1],
                largest_loss_difference=max(abs(a - b) for a, b in zip(ours, losses, strict=True)),
            )
        )
    if (worst := max(row.largest_loss_difference for row in rows)) > 1e-3:
        raise SystemExit(f"the losses differ by {worst}: not the same training")
    return rows


def table(rows: list[Row]) -> Iterator[str]:
    """A heading, then a line for each row."""
    yield f"{'attention':10} {'library':13} {'tokens/s':>8} {'ratio':>6} {'GiB':>6} {'last loss':>10} {'differs':>11}"
    for row in rows:
        theirs = next(r for r in rows if r.attention == row.attention and r.library == "transformers")
        ratio = row.tokens_per_second / theirs.tokens_per_second
        yield (
            f"{row.attention:10} {row.library:13} {row.tokens_per_second:8,.0f} {ratio:6.2f} {row.memory_gib:6.3f} "
            f"{row.last_loss:10.5f} {row.largest_loss_difference:11.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--json", action="store_true", help="print one object a line instead of the table")
    options = parser.parse_args()
    rows = rows_of(run_rounds(options.rounds))
    if options.json:
        print(*(json.dumps(asdict(row)) for row in rows), sep="\n")
        return
    print(f"{STEPS} steps, {torch.get_num_threads()} threads, median of {options.rounds} rounds")
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
