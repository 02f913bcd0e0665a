"""Before any GPU is rented: does the job fit, how fast will it be, how long does it take, what does it cost?

    python -m logtrain.plan launch/cpt_8xh100.toml --gpus 8 --gpu h100-sxm --price 2.31

Memory, FLOPs, launches and collectives are exact: the real step runs on pretended GPUs (trace.py). Seconds are a
prediction from microbenchmarks (cost.py), so is all that follows from them. A folder `data` that exists gives the
documents' lengths, a folder `model` its shape; without them the options' distribution and the published shape count.
"""

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from logtrain import hf
from logtrain.config import load, run
from logtrain.cost import COLLECTIVES, Gpu, Timeline, Workload, breakdown, simulate
from logtrain.data.pack import pack, pieces
from logtrain.data.shards import Split
from logtrain.job import JobConfig
from logtrain.metrics import model_flops
from logtrain.model import LlamaConfig
from logtrain.picture import draw
from logtrain.trace import Trace, trace_step

GIB = 2**30
MARGIN = 0.05  # of the memory that --search leaves free: fragmentation, longer documents
PUBLISHED = {  # hidden, feed-forward, layers, heads, key-value heads, head size, tied: config.json of meta-llama
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128, False),
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, 64, True),
    "Llama-3.2-3B": (3072, 8192, 28, 24, 8, 128, True),
    "Llama-3.1-70B": (8192, 28672, 80, 64, 8, 128, False),
}


@dataclass(frozen=True, kw_only=True)
class PlanConfig(JobConfig):
    """Predict memory, speed and cost of a training job on GPUs, without one."""

    name: str = "plan"
    gpus: int = 8
    """GPUs of the job, eight in a node."""
    gpu: str = "h100-sxm"
    """h100-sxm, h200, a100-80g, or a TOML file like those in logtrain/gpus."""
    price: float = 2.31
    """Dollars for a GPU and hour."""
    search: bool = False
    """Try micro-batch rows, recomputation, resharding and reduce dtype; print the fastest that fits, and the rest."""
    json: bool = False
    """One JSON object instead of the table."""
    picture: str = ""
    """SVG file: one block on both streams, and memory over a step."""
    documents: int = 250_000
    """Where `data` is not a folder: NLPLog's documents ..."""
    document_tokens: float = 444.0
    """... their mean length (111 M tokens), and ..."""
    document_sigma: float = 0.6
    """... the deviation of its logarithm (lognormal). NLPLog's is not published; like data have 0.41 (explanations of
    log lines) and 0.81 (mixed log instructions). Attention's time goes with exp(sigma^2).
    """

    def __post_init__(self):
        if self.gpus < 1 or (self.gpus > 8 and self.gpus % 8):
            raise ValueError(f"gpus = {self.gpus}: expected 1 to 8, or whole nodes of 8")
        for key in ("price", "document_sigma"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} = {getattr(self, key)} must not be negative")
        if self.documents < 1 or self.document_tokens < 2:
            raise ValueError("documents must be at least 1 and document_tokens at least 2")


@dataclass(frozen=True)
class Documents:
    source: str
    tokens: int
    rows: int
    lengths: np.ndarray  # of the pieces that share rows


def read_shape(model: str) -> LlamaConfig:
    if (Path(model) / "config.json").is_file():
        return hf.read_config(model)
    known = [name for name in PUBLISHED if re.search(rf"{re.escape(name)}(?![0-9A-Za-z])", model, re.I)]
    if not known:
        raise ValueError(
            f"model = {model}: no config.json there, and no shape known by that name ({', '.join(PUBLISHED)}); "
            f"set --model to a folder with the model's config.json"
        )
    hidden, feed_forward, layers, heads, kv_heads, head, tied = PUBLISHED[known[0]]
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head,
        norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=None,
        max_positions=131_072,
        tied=tied,
    )


def read_documents(config: PlanConfig) -> Documents:
    """The corpus, packed as the loader packs it."""
    if (Path(config.data) / "manifest.json").is_file():
        lengths, source = Split.open(config.data, "train", verify=False).lengths, f"{config.data}"
    else:
        sigma, mean = config.document_sigma, config.document_tokens
        drawn = np.random.default_rng(0).lognormal(np.log(mean) - sigma**2 / 2, sigma, config.documents)
        lengths = np.maximum(2, drawn).astype(np.int64)
        source = f"lognormal, mean {mean:g} tokens, sigma {sigma:g} (no prepared data at {config.data})"
    cut = pieces(lengths, config.loader.seq_len).length_P.astype(np.int64)
    rows = len(pack(cut, config.loader.seq_len, config.seed, 0).row_start_R1) - 1
    return Documents(source, int(lengths.sum()), rows, cut)


@dataclass(frozen=True)
class Plan:
    config: PlanConfig
    gpu: Gpu
    llama: LlamaConfig
    documents: Documents
    trace: Trace
    timeline: Timeline
    result: dict


def make_plan(config: PlanConfig, documents: Documents | None = None) -> Plan:
    """Trace and cost the recipe. ValueError for one that is impossible; one that does not fit has fits = False."""
    gpu, llama, documents = Gpu(config.gpu), read_shape(config.model), documents or read_documents(config)
    if config.loader.seq_len > llama.max_positions:
        raise ValueError(f"loader.seq_len = {config.loader.seq_len}: the model knows {llama.max_positions} positions")
    traced = replace(
        config, parallel=replace(config.parallel, symmetric_memory=False)
    )  # the same but for where it lies
    trace = trace_step(traced, llama, config.gpus)
    by_document = config.loader.attention == "document"
    kernel = "fa3" if config.attention_backend == "fa3" else "fa2"
    if kernel not in gpu.attention:
        raise ValueError(f"attention_backend = {config.attention_backend}: {gpu.name} has {', '.join(gpu.attention)}")
    quiet = ("all_gather",) if config.parallel.symmetric_memory else ()  # sums still need processors
    workload = Workload(documents.lengths if by_document else np.array([config.loader.seq_len]), kernel, quiet)
    timeline = simulate(trace.ops, gpu, workload)
    step_seconds, parts = breakdown(trace.ops, trace.repeats, timeline)

    slots = trace.tokens * trace.accumulation
    tokens = slots * documents.tokens / (documents.rows * config.loader.seq_len)  # rows are not quite full
    pairs = slots * workload.pairs_per_token
    full_pairs = slots * config.loader.seq_len  # as if every token saw its whole row, before and behind
    causal, full = (model_flops(llama, slots, int(p)) for p in (pairs, full_pairs))
    executed = trace.total(lambda op: workload.attention_flops(op) if op.kind == "attention" else op.flops)
    steps = config.trainer.total_steps(-(-documents.rows // config.loader.rows_per_step))
    hours = config.gpus * steps * step_seconds / 3600
    available = gpu.memory - gpu.reserved
    result = {
        "fits": trace.peak.total <= available,
        "peak_memory_gib": trace.peak.total / GIB,
        "available_memory_gib": available / GIB,
        "memory_gib": {name: size / GIB for name, size in sorted(trace.peak.by_category.items())},
        "tokens_per_second_per_gpu": tokens / step_seconds,
        "step_seconds": step_seconds,
        "step_seconds_by": parts,
        "mfu_full": full / step_seconds / gpu.peak,
        "mfu_causal": causal / step_seconds / gpu.peak,
        "flops_per_token_model": causal / slots,
        "flops_per_token_executed": executed / slots,
        "collectives": collectives(trace),
        "launches": int(trace.total(lambda op: op.launches)),
        "elementwise_bytes": int(trace.total(lambda op: op.read + op.written if op.kind == "pointwise" else 0)),
        "host_syncs": len(trace.syncs),
        "tokens_per_step": int(tokens * config.gpus),
        "steps": steps,
        "train_minutes": steps * step_seconds / 60,
        "gpu_hours": hours,
        "cost_usd": hours * config.price,
        "gpu": gpu.name,
        "gpus": config.gpus,
        "documents": documents.source,
        "prediction": True,
    }
    return Plan(config, gpu, llama, documents, trace, timeline, result)


def collectives(trace: Trace) -> dict[str, dict[str, int]]:
    """A step's, on one rank: kind -> how many, and the bytes of the larger side."""
    found: dict[str, dict[str, int]] = {}
    for op in trace.ops:
        if op.kind in COLLECTIVES:
            entry = found.setdefault(op.kind, {"count": 0, "bytes": 0})
            entry["count"] += trace.count(op)
            entry["bytes"] += trace.count(op) * max(op.read, op.written)
    return found


# ---- what a person reads


def table(plan: Plan) -> str:
    r, config, trace = plan.result, plan.config, plan.trace
    fits = "fits" if r["fits"] else "DOES NOT FIT"
    lines = [
        f"{config.gpus} x {plan.gpu.name}, {plan.llama.num_parameters / 1e9:.2f} B parameters, {trace.accumulation} "
        f"micro-batches of {config.loader.rows_per_batch} x {config.loader.seq_len:,} tokens, recompute "
        f"{config.recompute}; every figure in time or dollars is a prediction",
        "",
        f"memory a GPU     {r['peak_memory_gib']:.1f} of {r['available_memory_gib']:.1f} GiB: {fits}",
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
            return f"{text} makes it fit ({other.result['peak_memory_gib']:.1f} GiB)"
    return "not even full recomputation with one row makes it fit; take more GPUs, or larger ones"


def varied(config: PlanConfig, rows: int | None = None, recompute: str | None = None, **parallel) -> PlanConfig:
    return replace(
        config,
        recompute=recompute or config.recompute,
        loader=replace(config.loader, rows_per_batch=rows or config.loader.rows_per_batch),
        parallel=replace(config.parallel, **parallel),
    )


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
                        found.append((settings, None, "does not fit: fewer rows do not"))
                        continue
                    plan = make_plan(varied(config, **settings), documents)
                    need, have = plan.result["peak_memory_gib"], plan.result["available_memory_gib"] * (1 - MARGIN)
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
        need = f"{plan.result['peak_memory_gib']:6.1f}" if plan else "     -"
        speed = f"{plan.result['tokens_per_second_per_gpu']:13,.0f}" if plan else f"{'-':>13}"
        reshard = "yes" if settings["reshard_after_forward"] else "no"
        lines.append(
            f"{settings['rows']:4} {settings['recompute']:10} {settings['reduce_dtype']:9} {reshard:8} {need} {speed}  "
            f"{why or '<- fastest that fits, predicted'}"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    config = load(PlanConfig, argv)
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
        draw(Path(config.picture), plan.trace, plan.timeline, asdict(config)["name"])
    if not plan.result["fits"]:
        need, have = plan.result["peak_memory_gib"], plan.result["available_memory_gib"]
        raise ValueError(f"needs {need:.1f} GiB a GPU, {plan.gpu.name} has {have:.1f}; {remedy(plan)}")
    return 0


if __name__ == "__main__":
    run(main)
