"""A plan, and a search among plans, as text for a terminal."""

from collections.abc import Sequence
from math import floor, log10

from logtrain.planning.prediction import Plan
from logtrain.planning.search import Variant, rounded


def plan_table(plan: Plan) -> str:
    """The figures of a plan, a line for each; no speed and no price of a job that does not fit."""
    result, figures = plan.result, plan.figures
    lines = [heading(plan), "", *memory_lines(plan)]
    if result["fits"]:
        lines += speed_lines(plan)
    lines += [*count_lines(plan), f"model            {result['model']}", f"documents        {result['documents']}"]
    if result["fits"]:
        lines.append(
            f"training         {result['steps']} steps, {figures['train_minutes']} minutes, "
            f"{figures['gpu_hours']} GPU-hours, ${figures['cost_usd']}"
        )
    return "\n".join(lines)


def heading(plan: Plan) -> str:
    """The job, in one line, and how to read the figures."""
    config, loader = plan.config, plan.config.loader
    return (
        f"{config.gpus} x {plan.gpu.name}, {plan.shape.num_parameters / 1e9:.2f} B parameters, "
        f"{plan.trace.accumulation} micro-batches of {loader.rows_per_batch} x {loader.seq_len:,} tokens, recompute "
        f"{config.recompute}\nnothing here was measured: every figure in time or dollars is a prediction, with the "
        f"interval in brackets in which four of five should lie"
    )


def memory_lines(plan: Plan) -> list[str]:
    """The memory of a GPU, whether it is there, and the parts of the peak, the largest first."""
    result, least = plan.result, plan.gpu.surely_available / 2**30
    verdict = f"at most {plan.memory.high:.1f} of at least {least:.1f}"
    return [
        f"memory a GPU     {plan.memory} GiB of {result['available_memory_gib']:.1f}: "
        f"{'fits' if result['fits'] else 'DOES NOT SURELY FIT'}, {verdict}",
        f"tensors          {result['peak_memory_gib']:.1f} GiB at the peak",
        *(f"  {name:20} {size:6.2f}" for name, size in sorted(result["memory_gib"].items(), key=lambda x: -x[1])),
    ]


def speed_lines(plan: Plan) -> list[str]:
    """The time of a step and its parts."""
    result, figures = plan.result, plan.figures
    step = result["step_seconds"]
    places = max(0, 3 - floor(log10(step)))
    return [
        f"tokens/s/GPU     {figures['tokens_per_second_per_gpu']}",
        f"MFU              {figures['mfu_causal'].times(100)}% of pairs the mask lets through, "
        f"{figures['mfu_full'].times(100)}% of whole rows",
        f"step             {figures['step_seconds']} s",
        *(f"  {name:27} {part:8.{places}f} s {part / step:6.1%}" for name, part in result["step_seconds_by"].items()),
    ]


def count_lines(plan: Plan) -> list[str]:
    """What was counted: FLOPs, collectives and launches."""
    result = plan.result
    return [
        f"GFLOP a token    {result['flops_per_token_model'] / 1e9:.1f} of the model, "
        f"{result['flops_per_token_executed'] / 1e9:.1f} executed",
        *(
            f"  {kind:14} {collective['count']:6,} a step, {collective['bytes'] / 1e9:,.1f} GB"
            for kind, collective in result["collectives"].items()
        ),
        f"launches         {result['launches']:,} a step; host syncs {result['host_syncs']}",
    ]


def search_table(variants: Sequence[Variant]) -> str:
    """A line for each variant, in their order; the speed of those that fit alone."""
    lines = [f"{'rows':>4} {'recompute':10} {'reduce':9} {'reshard':8} {'GiB':>6} {'tokens/s/GPU':>24}  why not"]
    for variant in variants:
        settings, estimate = variant.settings, variant.estimate
        need = f"{estimate.reserved_gib:6.1f}" if estimate else "     -"
        speed = "-"
        if variant.plan:
            speed = str(variant.plan.figures["tokens_per_second_per_gpu"])
        elif estimate and not variant.why_not.startswith("does not fit"):
            speed = rounded(estimate.tokens_per_second)
        reshard = "yes" if settings.reshard_after_forward else "no"
        lines.append(
            f"{settings.rows:4} {settings.recompute:10} {settings.reduce_dtype:9} {reshard:8} {need} {speed:>24}  "
            f"{variant.why_not or '<- fastest that fits, predicted'}"
        )
    return "\n".join(lines)
