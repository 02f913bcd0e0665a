"""What `launch/gpu_check.sh` measured beside what `logtrain.plan` predicted: python -m benchmarks.measured FOLDER"""

import json
import sys
from pathlib import Path

FIGURES = ("tokens_per_second_per_gpu", "step_seconds", "peak_memory_gib", "mfu_causal")


def rows(folder: Path) -> list[tuple[str, float, float | None]]:
    """(figure, predicted, measured; None where this machine gives none)"""
    plan, speed = (json.loads((folder / name).read_text()) for name in ("plan.json", "speed.json"))
    return [(name, plan[name], speed[name]) for name in FIGURES]


def main() -> None:
    folder = Path(sys.argv[1])
    speed = json.loads((folder / "speed.json").read_text())
    on_gpu = speed["device"] != "cpu"
    print(
        f"{speed['gpus']} x {speed['device']}; predicted for H100 SXM{'' if on_gpu else ': not comparable with a CPU'}"
    )
    print(f"{'':26} {'predicted':>12} {'measured':>12} {'measured/predicted':>19}")
    for name, predicted, measured in rows(folder):
        ratio = f"{measured / predicted:19.3f}" if measured and on_gpu else f"{'-':>19}"
        print(
            f"{name:26} {predicted:12,.3f} {measured if measured is None else format(measured, '12,.3f')!s:>12} {ratio}"
        )


if __name__ == "__main__":
    main()
