"""What `launch/gpu_check.sh` measured beside what `logtrain.plan` predicted for the same data and GPU, and beside the
recipe's ledger where the machine is the recipe's: python -m benchmarks.measured FOLDER RECIPE

Exits with 1 where the measured tokens/s/GPU are below the ledger's by more than a tenth.
"""

import json
import sys
from pathlib import Path

FIGURES = ("tokens_per_second_per_gpu", "step_seconds", "peak_memory_gib", "mfu_causal")
RESULTS = Path(__file__).parent / "results"
LEAST = 0.9  # of the ledger's figure: the plan errs by 7% (median) on published runs, mostly on the fast side


def lines(plan: dict, speed: dict) -> list[str]:
    on_gpu = speed["device"] != "cpu"
    found = [f"{speed['gpus']} x {speed['device']}, plan for H100 SXM{'' if on_gpu else ': not comparable with a CPU'}"]
    found.append(f"{'':26} {'predicted':>12} {'measured':>12} {'measured/predicted':>19}")
    for name in FIGURES:
        predicted, measured = plan[name], speed[name]
        ratio = f"{measured / predicted:.3f}" if measured and on_gpu else "-"
        shown = "-" if measured is None else f"{measured:,.3f}"
        found.append(f"{name:26} {predicted:12,.3f} {shown:>12} {ratio:>19}")
    return found


def against_ledger(recorded: dict, speed: dict) -> tuple[str, bool]:
    """A line, and whether the figure on record is kept."""
    wanted, measured = recorded["tokens_per_second_per_gpu"], speed["tokens_per_second_per_gpu"]
    kept = measured >= LEAST * wanted
    return f"ledger: {wanted:,.0f} tokens/s/GPU, measured {measured:,.0f}: {'kept' if kept else 'NOT KEPT'}", kept


def main() -> int:
    folder, recipe = Path(sys.argv[1]), Path(sys.argv[2])
    plan, speed = (json.loads((folder / name).read_text()) for name in ("plan.json", "speed.json"))
    print("\n".join(lines(plan, speed)))
    if speed["gpus"] != 8 or "H100" not in speed["device"]:
        return 0
    line, kept = against_ledger(json.loads((RESULTS / f"ledger_{recipe.stem}.json").read_text()), speed)
    print(line)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
