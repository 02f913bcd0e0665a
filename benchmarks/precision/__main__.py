"""Whether a model can be trained in float8, before a GPU is rented: its casts, exactly, on a CPU, in real steps.

    python -m benchmarks.precision --model SmolLM2-135M-Instruct --data DIR --steps 200 --seeds 3 --results float8.jsonl

For each learning rate and seed the same steps are trained in fp32 and by each recipe, and the held-out losses of what
they leave are compared, in fp32, as the model would be exported. A gap that is small beside its interval and beside
what the steps gained is no loss. Then, for each of a block's matrices, how much a recipe's casts raise the variance of
a step's gradient, and how much they bias it (gradients.py says how): blocks where the variance rises by more than 10%
are candidates for `fp8.keep`.

Every result is kept in --results at once. The same command goes on where it was stopped, and more --steps or --seeds
add to it. A run of 135 M parameters takes about 25 CPU seconds a step of 4 rows of 256 tokens.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.precision.gradients import measure_gradients
from benchmarks.precision.losses import Kept, gaps, train_once
from benchmarks.precision.variant import REFERENCE, VARIANTS, Job

TOLERATED = 0.1  # of the variance of a step's gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of a small Llama")
    parser.add_argument("--data", type=Path, required=True, help="prepared folder, with a held-out split")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-5, 1e-4], help="peak learning rates")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant, with other rows in another order")
    parser.add_argument("--steps", type=int, default=200, help="steps of a run; 0 leaves the runs out")
    parser.add_argument("--rows", type=int, default=4, help="rows of a step")
    parser.add_argument("--seq_len", type=int, default=256, help="tokens of a row")
    parser.add_argument("--valid_steps", type=int, default=1000, help="held-out steps at most")
    parser.add_argument("--gradients", type=int, default=16, help="micro-batches for the gradients; 0 leaves them out")
    names = [name for name in VARIANTS if name != REFERENCE]
    parser.add_argument("--variants", nargs="+", default=["tensorwise", "rowwise"], choices=names, metavar="NAME")
    parser.add_argument("--results", type=Path, default=Path("float8.jsonl"), help="where every result is kept")
    args = parser.parse_args()
    job, kept = Job(args.model, args.data, args.rows, args.seq_len, max(args.steps, 1)), Kept(args.results)
    if args.gradients:
        of_gradients(job, kept, args.variants, args.gradients)
    if args.steps:
        of_losses(job, kept, args)


def of_gradients(job: Job, kept: Kept, variants: list[str], count: int) -> None:
    """Measure the gradients of variants that are not there yet, and show them all."""
    missing = [name for name in variants if not kept.has(variant=name, micro_batches=count)]
    for line in measure_gradients(job, missing, count) if missing else ():
        kept.add(line)
    lines = [run for run in kept.runs if run.get("micro_batches") == count and run["variant"] in variants]
    print(f"error^2 / noise^2 of a gradient, bias / signal ({count} micro-batches of {job.seq_len} tokens)")
    for variant in variants:
        mine = [line for line in lines if line["variant"] == variant]
        for matrix in dict.fromkeys(line["layer"].split()[1] for line in mine):
            print(f"  {variant}, {matrix}: {spread([line for line in mine if line['layer'].split()[1] == matrix])}")
        of_block: dict[int, list[float]] = {}
        for line in mine:
            of_block.setdefault(int(line["layer"].split()[0]), []).append(raised(line))
        over = [str(block) for block, found in of_block.items() if sum(found) / len(found) > TOLERATED]
        print(f"  {variant}: above {TOLERATED:.0%} on average in blocks {', '.join(over) or 'none'}")


def raised(line: dict[str, Any]) -> float:
    """By how much casts raise the variance of a step's gradient, as a share."""
    return (line["error"] ** 2 - line["bias"] ** 2) / line["noise"] ** 2


def spread(lines: list[dict[str, Any]]) -> str:
    """The least, the median and the most over the blocks, in words; and the block of the most."""
    order = sorted(lines, key=raised)
    at = [raised(order[i]) for i in (0, len(order) // 2, -1)]
    bias = sorted(line["bias"] / line["signal"] for line in lines if line["signal"])
    of_signal = f"{bias[len(bias) // 2]:.1%} (most {bias[-1]:.1%})" if bias else "unknown"
    ratio = sorted(line["signal"] / line["noise"] for line in lines)[len(lines) // 2]
    return (
        f"{at[0]:.2%} to {at[2]:.2%}, median {at[1]:.2%}, the most in block {order[-1]['layer'].split()[0]}; "
        f"bias {of_signal}; signal / noise of a micro-batch {ratio:.2f}"
    )


def of_losses(job: Job, kept: Kept, args: argparse.Namespace) -> None:
    """Do the runs that are not there yet, and show after each seed what is known."""
    facts = {"steps": job.steps, "rows": job.rows, "seq_len": job.seq_len}
    for seed in range(args.seeds):
        for lr in args.lr:
            for variant in [REFERENCE, *args.variants]:
                if not kept.has(variant=variant, seed=seed, lr=lr, **facts):
                    kept.add(train_once(job, variant, seed, lr, args.valid_steps))
                    print(f"{variant}, lr {lr:g}, seed {seed}: {kept.runs[-1]['after']:.5f}", flush=True)
        for line in gaps([run for run in kept.runs if facts.items() <= run.items()], REFERENCE):
            print(
                f"lr {line['lr']:g}, {line['variant']}: held-out loss {line['gap']:+.5f} +- {line['half']:.5f} beside "
                f"{REFERENCE} ({line['seeds']} seeds of {line['steps']} steps, which gained {line['gained']:.4f}; "
                f"the seeds' own half interval {line['half_of_reference']:.4f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
