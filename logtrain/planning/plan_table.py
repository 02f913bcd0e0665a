"""A plan, and a search among plans, as text for a terminal."""

from collections.abc import Sequence

from logtrain.planning.prediction import Plan
from logtrain.planning.search import Variant


def plan_table(plan: Plan) -> str:
    """The figures of a plan, a line for each."""
    result = plan.result
    return "\n".join(
        [
            heading(plan),
            "",
            *memory_lines(plan),
            *speed_lines(plan),
            f"launches         {result['launches']:,} a step; host syncs {result['host_syncs']}",
            f"model            {result['model']}",
            f"documents        {result['documents']}",
            f"training         {result['steps']} steps, {result['train_minutes']:.1f} minutes, "
            f"{result['gpu_hours']:.2f} GPU-hours, ${result['cost_usd']:.2f}",
        ]
    )


def heading(plan: Plan) -> str:
    """The job, in one line."""
    config, loader = plan.config, plan.config.loader
    return (
        f"{config.gpus} x {plan.gpu.name}, {plan.shape.num_parameters / 1e9:.2f} B parameters, "
        f"{plan.trace.accumulation} micro-batches of {loader.rows_per_batch} x {loader.seq_len:,} tokens, recompute "
        f"{config.recompute}; every figure in time or dollars is a prediction"
    )


def memory_lines(plan: Plan) -> list[str]:
    """The peak of a GPU's memory, and its parts, the largest first."""
    result = plan.result
    fits = "fits" if result["fits"] else "DOES NOT FIT"
    return [
        f"memory a GPU     {result['peak_memory_gib']:.1f} GiB of tensors, {result['reserved_memory_gib']:.1f} with "
        f"the gaps between them, of {result['available_memory_gib']:.1f}: {fits}",
        *(f"  {name:20} {size:6.2f}" for name, size in sorted(result["memory_gib"].items(), key=lambda x: -x[1])),
    ]


def speed_lines(plan: Plan) -> list[str]:
    """The time of a step and its parts, its FLOPs and its collectives."""
    result = plan.result
    step = result["step_seconds"]
    return [
        f"tokens/s/GPU     {result['tokens_per_second_per_gpu']:,.0f}",
        f"MFU              {result['mfu_causal']:.1%} of pairs the mask lets through, "
        f"{result['mfu_full']:.1%} of whole rows",
        f"step             {step:.2f} s",
        *(f"  {name:27} {part:7.3f} s {part / step:6.1%}" for name, part in result["step_seconds_by"].items()),
        f"GFLOP a token    {result['flops_per_token_model'] / 1e9:.1f} of the model, "
        f"{result['flops_per_token_executed'] / 1e9:.1f} executed",
        *(
            f"  {kind:14} {collective['count']:6,} a step, {collective['bytes'] / 1e9:,.1f} GB"
            for kind, collective in result["collectives"].items()
        ),
    ]


def search_table(variants: Sequence[Variant]) -> str:
    """A line for each variant, in their order."""
    lines = [f"{'rows':>4} {'recompute':10} {'reduce':9} {'reshard':8} {'GiB':>6} {'tokens/s/GPU':>13}  why not"]
    for variant in variants:
        settings, result = variant.settings, variant.plan.result if variant.plan else None
        need = f"{result['reserved_memory_gib']:6.1f}" if result else "     -"
        speed = f"{result['tokens_per_second_per_gpu']:13,.0f}" if result else f"{'-':>13}"
        reshard = "yes" if settings.reshard_after_forward else "no"
        lines.append(
            f"{settings.rows:4} {settings.recompute:10} {settings.reduce_dtype:9} {reshard:8} {need} {speed}  "
            f"{variant.why_not or '<- fastest that fits, predicted'}"
        )
    return "\n".join(lines)
