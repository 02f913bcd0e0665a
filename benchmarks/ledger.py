"""What a step of every recipe costs, on record: `python -m benchmarks.ledger` compares, `--accept` writes anew.

The counts are exact, for the real step runs on pretended GPUs; tokens/s/GPU is a prediction. A change that makes one of
them worse by more than 1% fails tests/benchmarks/test_ledger.py until it is accepted on purpose.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from logtrain.core.config import load
from logtrain.planning.config import PlanConfig
from logtrain.planning.corpus import read_corpus
from logtrain.planning.gpu_file import read_gpu
from logtrain.planning.prediction import make_plan, plan_of
from logtrain.planning.result import PlanResult
from logtrain.planning.shape import read_shape

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TOLERANCE = 0.01
CHATS = ["--documents", "8971", "--document_tokens", "4000"]  # as many as the published chats, about as long
LLAMA = ["--model", "Llama-3.1-8B"]
SMALL = ["--model", "Llama-3.2-1B"]  # where the recipe takes any model
RECIPES = {
    "cpt_8xh100": [],
    "cpt_8xh100_fp8": ["--precision", "fp8"],
    "cpt_8xh100_replay": ["--data", *(f"{name}=none" for name in ("logs", "replay", "text"))],
    "sft_full_8xh100": [*LLAMA, *CHATS],
    "sft_lora_4xh100": [*LLAMA, *CHATS, "--gpus", "4"],
    "dpo_lora_8xh100": [*LLAMA, "--pairs", "--documents", "20000"],
    "demo": [*SMALL, "--gpus", "1"],
    "demo_sft": [*SMALL, "--gpus", "1"],
    "demo_own": [*SMALL, "--gpus", "1"],
}
VARIANTS = {"cpt_8xh100_fp8": "cpt_8xh100"}  # of a recipe, with flags
FEW, MORE = 4, 6  # blocks of the shallow models
HIGHER_IS_BETTER = {"tokens_per_second_per_gpu"}


def job_of(recipe: str) -> PlanConfig:
    """The job of a recipe."""
    file = ROOT / "launch" / "recipes" / f"{VARIANTS.get(recipe, recipe)}.toml"
    return load(PlanConfig, [str(file), "--data", "none", *RECIPES[recipe]])


def figures(recipe: str) -> dict[str, float]:
    """What one step of the recipe costs on one GPU of the job."""
    return counted(make_plan(job_of(recipe)).result)


def figures_by_block(recipe: str) -> dict[str, float]:
    """`figures` in a fraction of the time, but for what the allocator reserves, which is no sum over blocks: blocks are
    alike, so plans of two shallow models tell what each further one costs. The peak of memory must be at one moment of
    the step at any depth.
    """
    config = job_of(recipe)
    shape, gpu, corpus = read_shape(config.model), read_gpu(config.gpu), read_corpus(config)
    few, more = (
        counted(plan_of(config, gpu, replace(shape, num_layers=blocks), corpus).result) for blocks in (FEW, MORE)
    )
    further = (shape.num_layers - MORE) / (MORE - FEW)
    found = {name: more[name] + further * (more[name] - few[name]) for name in more}
    del found["reserved_memory_gib"]
    for name in HIGHER_IS_BETTER:
        found[name] = 1 / (1 / more[name] + further * (1 / more[name] - 1 / few[name]))
    return found


def counted(result: PlanResult) -> dict[str, float]:
    """The figures of a plan that are kept on record."""
    found: dict[str, float] = {
        "flops_per_token_executed": result["flops_per_token_executed"],
        "elementwise_bytes": result["elementwise_bytes"],
        "launches": result["launches"],
        "host_syncs": result["host_syncs"],
        "peak_memory_gib": result["peak_memory_gib"],
        "reserved_memory_gib": result["reserved_memory_gib"],
        "tokens_per_second_per_gpu": result["tokens_per_second_per_gpu"],
    }
    for kind, collective in sorted(result["collectives"].items()):
        found |= {f"{kind}_count": collective["count"], f"{kind}_bytes": collective["bytes"]}
    return found


def path_of(recipe: str) -> Path:
    """The file that a recipe's figures are recorded in."""
    return RESULTS / f"ledger_{recipe}.json"


def worse(now: dict[str, float], recorded: dict[str, float]) -> list[str]:
    """A line for each figure that is worse than the recorded one by more than 1%, or that is new."""
    found = []
    for name in sorted(now.keys() | recorded.keys()):
        before, after = recorded.get(name, 0), now.get(name, 0)
        change = (before - after) if name in HIGHER_IS_BETTER else (after - before)
        if change > TOLERANCE * abs(before):
            found.append(f"{name}: {after:,.6g}, recorded {before:,.6g}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accept", action="store_true", help="write the present figures into benchmarks/results")
    accept, failed = parser.parse_args().accept, False
    for recipe in RECIPES:
        now, path = figures(recipe), path_of(recipe)
        recorded = json.loads(path.read_text()) if path.exists() else {}
        for line in worse(now, recorded):
            failed = failed or not accept
            print(f"{recipe}: {line}")
        if accept:
            RESULTS.mkdir(exist_ok=True)
            path.write_text(json.dumps(now, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
