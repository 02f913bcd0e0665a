"""Before any GPU is rented: does the job fit, how fast will it be, how long does it take, what does it cost?

    python -m logtrain.plan launch/recipes/cpt_8xh100.toml --gpus 8 --gpu h100-sxm --price 2.31

With --search: the fastest micro-batch, recomputation, resharding and reduce dtype that fit, and why the others lose.
planning/prediction.py says what is exact and what is a prediction. Exit status 2: impossible, or it does not fit.
"""

import json
import re
from pathlib import Path

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.planning.config import PlanConfig
from logtrain.planning.gpu import read_gpu


def gpus_of(argv: list[str]) -> list[str]:
    """As a flag, for which number of GPUs the recipe is by its name: launch/recipes/sft_lora_4xh100.toml."""
    found = re.search(r"_(\d+)x[a-z]+\d+\w*\.toml$", argv[0]) if argv else None
    return ["--gpus", found[1]] if found else []


def main(argv: list[str]) -> int:
    config = load(PlanConfig, [*gpus_of(argv), *argv])
    read_gpu(config.gpu)  # before torch is imported, which takes seconds: a mistyped one is told at once
    from logtrain.planning.picture import draw
    from logtrain.planning.plan_table import plan_table, search_table
    from logtrain.planning.prediction import make_plan
    from logtrain.planning.search import remedy, search

    if config.search:
        variants = search(config)
        print(json.dumps([variant.to_json() for variant in variants]) if config.json else search_table(variants))
        return 0
    plan = make_plan(config)
    print(json.dumps(plan.result) if config.json else plan_table(plan))
    if config.picture:
        draw(Path(config.picture), plan.trace, plan.timeline, config.name)
    if not plan.result["fits"]:
        need, have = plan.result["reserved_memory_gib"], plan.result["available_memory_gib"]
        raise ValueError(f"needs {need:.1f} GiB a GPU, {plan.gpu.name} has {have:.1f}; {remedy(plan)}")
    return 0


if __name__ == "__main__":
    run(main)
