"""What `launch/gpu_check.sh` measured beside what `logtrain.plan` predicted for the same data and GPU, and beside the
recipe's ledger where the machine is the recipe's: python -m benchmarks.measured FOLDER RECIPE

FOLDER holds plan.json and speed.json. The exit status is 1 where the measured tokens/s/GPU are below the ledger's by
more than a tenth.
"""

import json
import sys
from pathlib import Path
from typing import Literal, TypedDict, get_args

from logtrain.planning.result import PlanResult

Figure = Literal["tokens_per_second_per_gpu", "step_seconds", "peak_memory_gib", "mfu_causal"]
FIGURES: tuple[Figure, ...] = get_args(Figure)
RESULTS = Path(__file__).parent / "results"
LEAST = 0.9  # of the ledger's figure: the plan errs by 7% (median) on published runs, mostly on the fast side


class Throughput(TypedDict):
    """What is measured, and on record of a recipe's step."""

    tokens_per_second_per_gpu: float


class Speed(Throughput):
    """What `benchmarks.speed` measures."""

    gpus: int
    """processes, where there is no GPU"""
    device: str
    """the GPU's name, or cpu"""
    step_seconds: float
    """median"""
    peak_memory_gib: float
    mfu_causal: float | None
    """share of the GPU's peak FLOP/s, of pairs that the mask lets through; None where the peak is not known"""
    loss_finite: bool


def lines(plan: PlanResult, speed: Speed) -> list[str]:
    """A heading, then a line for each figure."""
    on_gpu = speed["device"] != "cpu"
    shown = [
        f"{speed['gpus']} x {speed['device']}, plan for H100 SXM{'' if on_gpu else ': not comparable with a CPU'}",
        f"{'':26} {'predicted':>12} {'measured':>12} {'measured/predicted':>19}",
    ]
    for name in FIGURES:
        predicted, measured = plan[name], speed[name]
        ratio = f"{measured / predicted:.3f}" if measured and on_gpu else "-"
        figure = "-" if measured is None else f"{measured:,.3f}"
        shown.append(f"{name:26} {predicted:12,.3f} {figure:>12} {ratio:>19}")
    return shown


def against_ledger(recorded: Throughput, speed: Throughput) -> tuple[str, bool]:
    """(a line, whether the recorded tokens/s/GPU are kept)"""
    wanted, measured = recorded["tokens_per_second_per_gpu"], speed["tokens_per_second_per_gpu"]
    kept = measured >= LEAST * wanted
    return f"ledger: {wanted:,.0f} tokens/s/GPU, measured {measured:,.0f}: {'kept' if kept else 'NOT KEPT'}", kept


def main() -> int:
    folder, recipe = Path(sys.argv[1]), Path(sys.argv[2])
    plan: PlanResult = json.loads((folder / "plan.json").read_text())
    speed: Speed = json.loads((folder / "speed.json").read_text())
    print("\n".join(lines(plan, speed)))
    if speed["gpus"] != 8 or "H100" not in speed["device"]:
        return 0
    recorded: Throughput = json.loads((RESULTS / f"ledger_{recipe.stem}.json").read_text())
    line, kept = against_ledger(recorded, speed)
    print(line)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
