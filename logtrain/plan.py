"""Predicts, before any GPU is rented, whether a job fits, how fast it is and what it costs.

    logtrain plan launch/recipes/cpt_8xh100.toml --gpus 8 --gpu h100-sxm --price 2.31

With --search it finds the fastest micro-batch, recomputation, resharding and reduce dtype that fit, and shows why the
others lose. planning/prediction.py says which figures are exact and which are predictions. The exit status is 2 for a
job that is impossible or does not fit.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.planning.config import PlanConfig
from logtrain.planning.gpu_file import read_gpu


def gpus_of(argv: list[str]) -> list[str]:
    """The number of GPUs that a recipe is for by its name, as flags: launch/recipes/sft_lora_4xh100.toml is for 4."""
    found = re.search(r"_(\d+)x[a-z]+\d+\w*\.toml$", argv[0]) if argv else None
    return ["--gpus", found[1]] if found else []


def sets_rows(argv: list[str]) -> bool:
    """Whether somebody says how long a row is: a recipe or a flag. Else a row is no longer than the model knows."""
    pairs = zip(["", *argv], argv, strict=False)
    recipes = [word for before, word in pairs if word.endswith(".toml") and before != "--gpu"]
    return bool(recipes) or any(word.startswith("--loader.seq_len") for word in argv)


def main(argv: list[str]) -> int:
    """Print the plan that the flags ask for; -> the exit status."""
    config = load(PlanConfig, [*gpus_of(argv), *argv])
    read_gpu(config.gpu)  # an unknown GPU is reported before torch is imported, which takes seconds
    from logtrain.planning.corpus import with_pairs
    from logtrain.planning.picture import draw
    from logtrain.planning.plan_table import plan_table, search_table
    from logtrain.planning.prediction import make_plan
    from logtrain.planning.result import as_json
    from logtrain.planning.search import remedy, search
    from logtrain.planning.shape import read_shape

    config = with_pairs(config)
    if not sets_rows(argv):
        loader = config.loader
        seq_len = min(loader.seq_len, read_shape(config.model).max_positions)
        config = replace(config, loader=replace(loader, seq_len=seq_len))
    if config.search:
        variants = search(config, tell=lambda line: print(line, file=sys.stderr, flush=True))
        print(json.dumps([variant.to_json() for variant in variants]) if config.json else search_table(variants))
        return 0
    plan = make_plan(config)
    print(json.dumps(as_json(plan.result)) if config.json else plan_table(plan))
    if config.picture:
        draw(Path(config.picture), plan.trace, plan.timeline, config.name, plan.gpu.available)
    if not plan.result["fits"]:
        need, have = plan.memory.high, plan.gpu.surely_available / 2**30
        raise ValueError(f"may need {need:.1f} GiB a GPU, {plan.gpu.name} has {have:.1f} for sure; {remedy(plan)}")
    return 0


if __name__ == "__main__":
    run(main)
