"""A job's plan: the recipe's step traced on pretended GPUs and costed on a GPU's description.

Memory, FLOPs, launches and collectives are exact: the real step runs on pretended GPUs (trace.py). Seconds are a
prediction from microbenchmarks (cost.py), so is all that follows from them. A folder `data` that exists gives the
documents' lengths, a folder `model` its shape; without them the options' distribution and the published shape count.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from logtrain.data.pack import pack, pieces
from logtrain.data.shards import Split
from logtrain.model import hf
from logtrain.model.flops import model_flops
from logtrain.model.llama import LlamaConfig
from logtrain.model.lora import num_adapter_parameters
from logtrain.planning.cost import Gpu, Timeline, Workload, breakdown, simulate
from logtrain.planning.operation import COLLECTIVES
from logtrain.planning.trace import Trace, trace_step
from logtrain.training.config import RunConfig

GIB = 2**30
PUBLISHED = {  # hidden, feed-forward, layers, heads, key-value heads, head size, tied: config.json of meta-llama
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128, False),
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, 64, True),
    "Llama-3.2-3B": (3072, 8192, 28, 24, 8, 128, True),
    "Llama-3.1-70B": (8192, 28672, 80, 64, 8, 128, False),
}


@dataclass(frozen=True, kw_only=True)
class PlanConfig(RunConfig):
    """Predict memory, speed and cost of a training job on GPUs, without one."""

    name: str = "plan"
    gpus: int = 8
    """GPUs of the job, eight in a node. logtrain.plan takes the number in the recipe's file name: ..._4xh100.toml"""
    gpu: str = "h100-sxm"
    """h100-sxm, h200, a100-80g, or a TOML file like those in logtrain/planning/gpus."""
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
    if has_config(model):
        return hf.read_config(model)
    hidden, feed_forward, layers, heads, kv_heads, head, tied = PUBLISHED[named(model)]
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


def has_config(model: str) -> bool:
    return (Path(model) / "config.json").is_file()


def named(model: str) -> str:
    """The published model that a path has its name from, or at least its size: runs/nlplog-8b/export."""
    for words in ({name: name for name in PUBLISHED}, {name.split("-")[-1]: name for name in PUBLISHED}):
        for word, name in words.items():
            if re.search(rf"(?<![0-9A-Za-z.]){re.escape(word)}(?![0-9A-Za-z])", model, re.I):
                return name
    raise ValueError(
        f"model = {model}: no config.json there, and no shape known by that name or its size ({', '.join(PUBLISHED)}); "
        f"set --model to a folder with the model's config.json"
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


def with_rows_per_step(config: PlanConfig, documents: Documents) -> PlanConfig:
    """documents_per_step as the rows that hold so many on average."""
    if not config.loader.documents_per_step:
        return config
    rows = config.loader.rows_for_documents(len(documents.lengths) / documents.rows, config.gpus)
    return replace(config, loader=replace(config.loader, rows_per_step=rows, documents_per_step=0))


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
    config = with_rows_per_step(config, documents)
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
    adapters = num_adapter_parameters(llama, config.lora)
    causal, full = (model_flops(llama, slots, int(p), adapters) for p in (pairs, full_pairs))
    executed = trace.total(lambda op: workload.attention_flops(op) if op.kind == "attention" else op.flops)
    steps = config.trainer.total_steps(-(-documents.rows // config.loader.rows_per_step))
    hours = config.gpus * steps * step_seconds / 3600
    available = gpu.memory - gpu.reserved
    result = {
        "fits": trace.peak.reserved <= available,
        "peak_memory_gib": trace.peak.total / GIB,
        "reserved_memory_gib": trace.peak.reserved / GIB,
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
        "model": config.model
        if has_config(config.model)
        else f"{named(config.model)} (no config.json at {config.model})",
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


def varied(config: PlanConfig, rows: int | None = None, recompute: str | None = None, **parallel) -> PlanConfig:
    return replace(
        config,
        recompute=recompute or config.recompute,
        loader=replace(config.loader, rows_per_batch=rows or config.loader.rows_per_batch),
        parallel=replace(config.parallel, **parallel),
    )
