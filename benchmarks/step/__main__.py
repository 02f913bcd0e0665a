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
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.step.contest import CONFIG, STEPS

LIBRARIES, ATTENTIONS = ("logtrain", "transformers"), ("document", "row")


def measure(folder: Path, library: str, attention: str) -> dict:
    command = [sys.executable, "-m", f"benchmarks.step.{library}_worker", str(folder), attention]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one object a line instead of the table")
    options = parser.parse_args()
    results: dict[tuple[str, str], list[dict]] = {}
    with tempfile.TemporaryDirectory() as name:
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**CONFIG)).save_pretrained(name)
        for _ in range(options.rounds):
            for attention in ATTENTIONS:
                for library in LIBRARIES:
                    results.setdefault((attention, library), []).append(measure(Path(name), library, attention))
    rows = []
    for (attention, library), rounds in results.items():
        ours = results[attention, "logtrain"][0]["losses"]
        rows.append(
            {
                "attention": attention,
                "library": library,
                "tokens_per_second": statistics.median(r["tokens_per_second"] for r in rounds),
                "memory_gib": statistics.median(r["memory_gib"] for r in rounds),
                "first_loss": rounds[0]["losses"][0],
                "last_loss": rounds[0]["losses"][-1],
                "largest_loss_difference": max(abs(a - b) for a, b in zip(ours, rounds[0]["losses"], strict=True)),
            }
        )
    if (worst := max(row["largest_loss_difference"] for row in rows)) > 1e-3:
        raise SystemExit(f"the losses differ by {worst}: not the same training")
    if options.json:
        for row in rows:
            print(json.dumps(row))
        return
    print(f"{STEPS} steps, {torch.get_num_threads()} threads, median of {options.rounds} rounds")
    print(f"{'attention':10} {'library':13} {'tokens/s':>8} {'ratio':>6} {'GiB':>6} {'last loss':>10} {'differs':>11}")
    for row in rows:
        theirs = next(r for r in rows if r["attention"] == row["attention"] and r["library"] == "transformers")
        print(
            f"{row['attention']:10} {row['library']:13} {row['tokens_per_second']:8,.0f} "
            f"{row['tokens_per_second'] / theirs['tokens_per_second']:6.2f} {row['memory_gib']:6.3f} "
            f"{row['last_loss']:10.5f} {row['largest_loss_difference']:11.1e}"
        )


if __name__ == "__main__":
    main()
