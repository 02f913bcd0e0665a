"""Before any GPU is rented: does the job fit, how fast will it be, how long does it take, what does it cost?

    python -m logtrain.plan launch/recipes/cpt_8xh100.toml --gpus 8 --gpu h100-sxm --price 2.31

With --search: the fastest micro-batch, recomputation, resharding and reduce dtype that fit, and why the others lose.
What is exact and what is a prediction stands in predict.py. Exit status 2: impossible, or it does not fit.
"""

import json
import re
from pathlib import Path

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.planning.picture import draw
from logtrain.planning.prediction import Plan, PlanConfig, make_plan, read_documents, varied

MARGIN = 0.05  # of the memory that --search leaves free: for what the trace does not see


def table(plan: Plan) -> str:
    r, config, trace = plan.result, plan.config, plan.trace
    fits = "fits" if r["fits"] else "DOES NOT FIT"
    lines = [
        f"{config.gpus} x {plan.gpu.name}, {plan.llama.num_parameters / 1e9:.2f} B parameters, {trace.accumulation} "
        f"micro-batches of {config.loader.rows_per_batch} x {config.loader.seq_len:,} tokens, recompute "
        f"{config.recompute}; every figure in time or dollars is a prediction",
        "",
        f"memory a GPU     {r['peak_memory_gib']:.1f} GiB of tensors, {r['reserved_memory_gib']:.1f} with the gaps "
        f"between them, of {r['available_memory_gib']:.1f}: {fits}",
        *(f"  {name:20} {size:6.2f}" for name, size in sorted(r["memory_gib"].items(), key=lambda x: -x[1])),
        f"tokens/s/GPU     {r['tokens_per_second_per_gpu']:,.0f}",
        f"MFU              {r['mfu_causal']:.1%} of pairs the mask lets through, {r['mfu_full']:.1%} of whole rows",
        f"step             {r['step_seconds']:.2f} s",
        *(
            f"  {name:27} {value:7.3f} s {value / r['step_seconds']:6.1%}"
            for name, value in r["step_seconds_by"].items()
        ),
        f"GFLOP a token    {r['flops_per_token_model'] / 1e9:.1f} of the model, "
        f"{r['flops_per_token_executed'] / 1e9:.1f} executed",
        *(
            f"  {name:14} {entry['count']:6,} a step, {entry['bytes'] / 1e9:,.1f} GB"
            for name, entry in r["collectives"].items()
        ),
        f"launches         {r['launches']:,} a step; host syncs {r['host_syncs']}",
        f"model            {r['model']}",
        f"documents        {plan.documents.source}",
        f"training         {r['steps']} steps, {r['train_minutes']:.1f} minutes, {r['gpu_hours']:.2f} GPU-hours, "
        f"${r['cost_usd']:.2f}",
    ]
    return "\n".join(lines)


def remedy(plan: Plan) -> str:
    """What would make a job that is too large fit, by tracing it; the nearest change first."""
    config = plan.config
    rows, order = config.loader.rows_per_batch, ["none", "selective", "full"]
    stronger = order[order.index(config.recompute) + 1 :]
    changes = [("loader.rows_per_batch = 1", {"rows": 1})] if rows > 1 else []
    changes += [(f"recompute = {name}", {"recompute": name}) for name in stronger]
    changes += [
        (f"recompute = {name} and loader.rows_per_batch = 1", {"recompute": name, "rows": 1}) for name in stronger
    ]
    for text, change in changes:
        other = make_plan(varied(config, **change), plan.documents)
        if other.result["fits"]:
            return f"{text} makes it fit ({other.result['reserved_memory_gib']:.1f} GiB)"
    return "not even full recomputation with one row makes it fit; take more GPUs, or larger ones"


def search(config: PlanConfig) -> list[tuple[dict, Plan | None, str]]:
    """Every variant: (settings, its plan, why it lost); the fastest that fits comes first, with an empty reason."""
    documents, a_rank = read_documents(config), config.loader.rows_per_step // config.gpus
    found: list[tuple[dict, Plan | None, str]] = []
    too_large: set[tuple[str, int]] = set()
    for recompute in ("full", "selective", "none"):
        for rows in (n for n in (1, 2, 4, 8) if a_rank % n == 0):
            smallest = True
            for reduce_dtype in ("bfloat16", "float32"):
                for reshard in (True, False):
                    settings = {
                        "rows": rows, "recompute": recompute,
                        "reduce_dtype": reduce_dtype, "reshard_after_forward": reshard,
                    }  # fmt: skip
                    if any(rows >= n and recompute == name for name, n in too_large):
                        found.append((settings, None, "does not fit, nor does a smaller variant"))
                        continue
                    plan = make_plan(varied(config, **settings), documents)
                    need, have = plan.result["reserved_memory_gib"], plan.result["available_memory_gib"] * (1 - MARGIN)
                    if need > have:
                        found.append((settings, plan, f"does not fit: {need:.1f} of {have:.1f} GiB"))
                        if smallest:
                            too_large.add((recompute, rows))
                    else:
                        found.append((settings, plan, ""))
                    smallest = False
    found.sort(key=lambda x: (bool(x[2]), -x[1].result["tokens_per_second_per_gpu"] if x[1] else 0))
    best = found[0][1] if not found[0][2] else None
    return [(s, p, why or ("" if p is best else slower(p, best))) for s, p, why in found]


def slower(plan: Plan, best: Plan) -> str:
    """The parts of a step that take most longer than the fastest variant's."""
    mine, its = plan.result["step_seconds_by"], best.result["step_seconds_by"]
    more = sorted(((mine[name] - its[name], name) for name in mine), reverse=True)
    return ", ".join(f"{name} +{seconds:.2f} s" for seconds, name in more[:2] if seconds > 0.005) or "no faster"


def search_table(found: list) -> str:
    lines = [f"{'rows':>4} {'recompute':10} {'reduce':9} {'reshard':8} {'GiB':>6} {'tokens/s/GPU':>13}  why not"]
    for settings, plan, why in found:
        need = f"{plan.result['reserved_memory_gib']:6.1f}" if plan else "     -"
        speed = f"{plan.result['tokens_per_second_per_gpu']:13,.0f}" if plan else f"{'-':>13}"
        reshard = "yes" if settings["reshard_after_forward"] else "no"
        lines.append(
            f"{settings['rows']:4} {settings['recompute']:10} {settings['reduce_dtype']:9} {reshard:8} {need} {speed}  "
            f"{why or '<- fastest that fits, predicted'}"
        )
    return "\n".join(lines)


def gpus_of(argv: list[str]) -> list[str]:
    """As a flag, for which number of GPUs the recipe is by its name: launch/recipes/sft_lora_4xh100.toml."""
    found = re.search(r"_(\d+)x[a-z]+\d+\w*\.toml$", argv[0]) if argv else None
    return ["--gpus", found[1]] if found else []


def main(argv: list[str]) -> int:
    config = load(PlanConfig, [*gpus_of(argv), *argv])
    if config.search:
        found = search(config)
        if config.json:
            rows = [{**s, "why_not": why, **(p.result if p else {})} for s, p, why in found]
            print(json.dumps(rows))
        else:
            print(search_table(found))
        return 0
    plan = make_plan(config)
    print(json.dumps(plan.result) if config.json else table(plan))
    if config.picture:
        draw(Path(config.picture), plan.trace, plan.timeline, config.name)
    if not plan.result["fits"]:
        need, have = plan.result["reserved_memory_gib"], plan.result["available_memory_gib"]
        raise ValueError(f"needs {need:.1f} GiB a GPU, {plan.gpu.name} has {have:.1f}; {remedy(plan)}")
    return 0


if __name__ == "__main__":
    run(main)
