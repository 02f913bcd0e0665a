"""Training speed beside transformers' Trainer: `python -m benchmarks.step [--model DIR] [--rounds 3] [--json]` (extra
"bench").

Both train the same Llama on the CPU: the same weights, packed rows, optimizer and clipping, each in a process of its
own, taking turns; medians over the rounds. CPU seconds are those of a step over all threads: other work on the machine
disturbs them less than the speed. Peak memory is the most the process held above what it held before the model. The
losses must agree, for a fast wrong step counts for nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.step.recipe import ATTENTIONS, TINY, WARM_UP, Attention, Measurement, Recipe
from logtrain.model import hf

Library = Literal["logtrain", "transformers"]
LIBRARIES: tuple[Library, ...] = get_args(Library)
Rounds = dict[tuple[Attention, Library], list[Measurement]]
AGREEMENT = 1e-3  # of losses: first steps of AdamW take the sign even of gradients that are rounding alone


@dataclass(frozen=True)
class Row:
    """The medians of a library's rounds, and its losses beside ours."""

    attention: Attention
    library: Library
    tokens_per_second: float
    cpu_seconds: float
    memory_gib: float
    first_loss: float
    last_loss: float
    largest_loss_difference: float


def measure(library: Library, recipe: Recipe) -> Measurement:
    """Train in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.step.{library}_worker", recipe.to_json()]
    environment = {**os.environ, "OMP_NUM_THREADS": str(recipe.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    measured: Measurement = json.loads(done.stdout.splitlines()[-1])
    told = f"{measured['cpu_seconds']:.2f} CPU s a step, {measured['memory_gib']:.2f} GiB"
    print(f"{recipe.attention:10} {library:13} {told}", file=sys.stderr, flush=True)
    return measured


def run_rounds(number: int, recipe: Recipe) -> Rounds:
    """Measure each library with each attention so many times, taking turns."""
    rounds: Rounds = {(attention, library): [] for attention in ATTENTIONS for library in LIBRARIES}
    for _ in range(number):
        for (attention, library), measured in rounds.items():
            measured.append(measure(library, replace(recipe, attention=attention)))
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
                cpu_seconds=statistics.median(r["cpu_seconds"] for r in measured),
                memory_gib=statistics.median(r["memory_gib"] for r in measured),
                first_loss=losses[0],
                last_loss=losses[-1],
                largest_loss_difference=max(abs(a - b) / b for a, b in zip(ours, losses, strict=True)),
            )
        )
    if (worst := max(row.largest_loss_difference for row in rows)) > AGREEMENT:
        raise SystemExit(f"the losses differ by {worst:.1e} of themselves: not the same training")
    return rows


def table(rows: list[Row]) -> Iterator[str]:
    """A heading, then a line for each row; ratios are to transformers."""
    yield (
        f"{'attention':10} {'library':13} {'tokens/s':>8} {'CPU s':>7} {'ratio':>6} {'GiB':>6} {'ratio':>6} "
        f"{'last loss':>10} {'differs':>9}"
    )
    for row in rows:
        theirs = next(r for r in rows if r.attention == row.attention and r.library == "transformers")
        yield (
            f"{row.attention:10} {row.library:13} {row.tokens_per_second:8,.0f} {row.cpu_seconds:7.3f} "
            f"{row.cpu_seconds / theirs.cpu_seconds:6.2f} {row.memory_gib:6.3f} "
            f"{row.memory_gib / theirs.memory_gib:6.2f} {row.last_loss:10.5f} {row.largest_loss_difference:9.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a Llama in the Hugging Face layout; without: a tiny random one")
    parser.add_argument("--seq_len", type=int, default=512, help="tokens in a row")
    parser.add_argument("--rows", type=int, default=1, help="rows of a step")
    parser.add_argument("--steps", type=int, default=8, help=f"steps, of which {WARM_UP} do not count")
    parser.add_argument("--threads", type=int, default=1, help="threads of each library")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--json", action="store_true", help="print one object a line instead of the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if not options.model:
            torch.manual_seed(0)
            LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(name)
        recipe = Recipe(
            model=options.model or name,
            vocab_size=hf.read_config(Path(options.model or name)).vocab_size,
            attention="row",
            seq_len=options.seq_len,
            rows=options.rows,
            steps=options.steps,
            threads=options.threads,
            lr=1e-5 if options.model else 1e-3,
        )
        rows = rows_of(run_rounds(options.rounds, recipe))
    if options.json:
        print(*(json.dumps(asdict(row)) for row in rows), sep="\n")
        return
    rows_told = f"{options.rows} rows of {options.seq_len} tokens"
    print(f"{options.steps} steps of {rows_told}, {options.threads} threads, median of {options.rounds} rounds")
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
