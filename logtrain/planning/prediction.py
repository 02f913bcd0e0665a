"""Makes the plan of a job: the recipe's step is traced on pretended GPUs and costed by a GPU's description.

FLOPs, launches, collectives and the memory of tensors are exact: the real step runs on pretended GPUs (trace.py).
Seconds are a prediction from microbenchmarks (cost.py, timeline.py), and so is everything that follows from them; the
interval of each comes from the ranges of these microbenchmarks (interval.py). The documents' lengths come from the
folder `data` (corpus.py), and the model's shape from the folder `model` (shape.py). If a folder does not exist, the
config's distribution or a published shape takes its place.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch.utils.flop_counter import flop_registry

from logtrain.model.float8 import check_kept_blocks, check_sides
from logtrain.model.flops import model_flops
from logtrain.model.llama import LlamaConfig
from logtrain.model.lora import num_adapter_parameters
from logtrain.planning.config import PlanConfig
from logtrain.planning.corpus import Corpus, read_corpus, with_rows_per_step
from logtrain.planning.cost import Workload
from logtrain.planning.gpu import Gpu
from logtrain.planning.gpu_file import EXAMPLE, read_gpu
from logtrain.planning.interval import Interval, step_interval
from logtrain.planning.memory import at_most
from logtrain.planning.operation import COLLECTIVES
from logtrain.planning.result import Collective, PlanResult
from logtrain.planning.shape import read_shape, shape_source
from logtrain.planning.timeline import Timeline, breakdown, simulate
from logtrain.planning.trace import Trace, trace_step

GIB = 2**30
LEAST_OF_MODEL = 0.99  # of its FLOPs


@dataclass(frozen=True)
class Plan:
    """The plan of a job."""

    config: PlanConfig
    """Settings of the job."""
    gpu: Gpu
    """Constants of the GPU."""
    shape: LlamaConfig
    """Sizes of the model."""
    corpus: Corpus
    """The documents, packed."""
    trace: Trace
    """Operations and memory of a step."""
    workload: Workload
    """Facts that the trace does not have."""
    timeline: Timeline
    """Predicted times of the operations."""

    @cached_property
    def result(self) -> PlanResult:
        """The figures of the plan, computed once."""
        trace, gpus, memory = self.trace, self.config.gpus, self.memory
        seconds, seconds_by = breakdown(trace.ops, trace.repeats, self.timeline)
        causal, figures = self.flops[0], self.figures
        return {
            "fits": memory.high <= self.gpu.surely_available / GIB,
            "peak_memory_gib": trace.peak.total / GIB,
            "reserved_memory_gib": memory.middle,
            "available_memory_gib": self.gpu.available / GIB,
            "memory_gib": {name: size / GIB for name, size in sorted(trace.peak.by_category.items())},
            "tokens_per_second_per_gpu": figures["tokens_per_second_per_gpu"].middle,
            "step_seconds": seconds,
            "step_seconds_by": seconds_by,
            "mfu_full": figures["mfu_full"].middle,
            "mfu_causal": figures["mfu_causal"].middle,
            "flops_per_token_model": causal / self.slots,
            "flops_per_token_executed": self.executed_flops / self.slots,
            "collectives": collectives(trace),
            "launches": int(trace.total(lambda op: op.launches)),
            "elementwise_bytes": int(trace.total(lambda op: op.read + op.written if op.kind == "pointwise" else 0)),
            "host_syncs": len(trace.syncs),
            "tokens_per_step": int(self.tokens * gpus),
            "steps": self.steps,
            "train_minutes": figures["train_minutes"].middle,
            "gpu_hours": figures["gpu_hours"].middle,
            "cost_usd": figures["cost_usd"].middle,
            "gpu": self.gpu.name,
            "gpus": gpus,
            "model": shape_source(self.config.model),
            "documents": self.corpus.source,
            "intervals": {name: (figure.low, figure.high) for name, figure in figures.items()},
            "prediction": True,
        }

    @cached_property
    def memory(self) -> Interval:
        """GiB that the allocator takes on a GPU: at least the tensors, at most also what the trace may not see."""
        reserved = self.trace.peak.reserved / GIB
        return Interval(self.trace.peak.total / GIB, reserved, at_most(reserved, self.config.compile))

    @cached_property
    def figures(self) -> dict[str, Interval]:
        """Every predicted figure with its interval, by its name in `result`."""
        seconds = step_interval(self.trace.ops, self.trace.repeats, self.gpu, self.workload)
        causal, full = self.flops
        hours = seconds.times(self.config.gpus * self.steps / 3600)
        return {
            "reserved_memory_gib": self.memory,
            "tokens_per_second_per_gpu": seconds.per(self.tokens),
            "step_seconds": seconds,
            "mfu_full": seconds.per(full / self.gpu.peak),
            "mfu_causal": seconds.per(causal / self.gpu.peak),
            "train_minutes": seconds.times(self.steps / 60),
            "gpu_hours": hours,
            "cost_usd": hours.times(self.config.price),
        }

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.config.trainer.total_steps(-(-self.corpus.num_rows // self.config.loader.rows_per_step))

    @property
    def tokens(self) -> float:
        """Tokens of documents that a GPU takes in a step."""
        return self.slots * self.corpus.num_tokens / (self.corpus.num_rows * self.config.loader.seq_len)

    @property
    def flops(self) -> tuple[float, float]:
        """FLOPs of a step on one GPU by the pairs that the mask lets through, and as if every token saw its whole row,
        also what follows it.
        """
        return self.model_flops(self.workload.pairs_per_token), self.model_flops(self.config.loader.seq_len)

    @property
    def slots(self) -> int:
        """Tokens of a step's rows on one GPU, with padding."""
        return self.trace.tokens * self.trace.accumulation

    def model_flops(self, pairs_per_token: float) -> float:
        """FLOPs of a step on one GPU as MFU counts them, with attention to `pairs_per_token` keys for each token."""
        adapters = num_adapter_parameters(self.shape, self.config.lora)
        return model_flops(self.shape, self.slots, int(self.slots * pairs_per_token), adapters)

    @property
    def executed_flops(self) -> float:
        """FLOPs of the products and attention that a step runs on one GPU."""
        return self.trace.total(lambda op: self.workload.attention_flops(op) if op.kind == "attention" else op.flops)


def make_plan(config: PlanConfig, corpus: Corpus | None = None) -> Plan:
    """Trace and cost a recipe; the result of a job that does not fit has "fits": False.

    `corpus`: that of the config, if it was read before. Raises ValueError for a job that is impossible.
    """
    gpu, shape, corpus = read_gpu(config.gpu), read_shape(config.model), corpus or read_corpus(config)
    return plan_of(config, gpu, shape, corpus)


def plan_of(config: PlanConfig, gpu: Gpu, shape: LlamaConfig, corpus: Corpus) -> Plan:
    """The plan of a job whose GPU, model and documents were read. Raises ValueError for a job that is impossible."""
    config = with_rows_per_step(config, corpus)
    if config.loader.seq_len > shape.max_positions:
        raise ValueError(f"loader.seq_len = {config.loader.seq_len}: the model knows {shape.max_positions} positions")
    if config.precision == "fp8":
        if not gpu.float8:
            raise ValueError(
                f"precision = fp8: the rate of float8 products on {gpu.name} is not known; see [float8] in {EXAMPLE}"
            )
        check_kept_blocks(shape, config.fp8)
        check_sides(shape, config.loader.seq_len * config.loader.rows_per_batch)
    workload = workload_of(config, gpu, corpus)
    parallel = replace(config.parallel, symmetric_memory=False)  # a step is the same without it, and then needs no GPU
    trace = trace_step(replace(config, parallel=parallel), shape, config.gpus)
    plan = Plan(config, gpu, shape, corpus, trace, workload, simulate(trace.ops, gpu, workload))
    check_flops(plan)
    return plan


def check_flops(plan: Plan) -> None:
    """Raises ValueError where the plan takes a product of the step for elementwise work, which would make memory, time
    and MFU wrong: where PyTorch counts FLOPs of such an operation, or the step has fewer FLOPs than the model. With
    adapters up to a block's may be missing, as nothing before the first adapter has a gradient.
    """
    products = {packet.__name__ for packet in flop_registry}
    uncounted = sorted({op.name for op in plan.trace.ops if op.kind == "pointwise" and op.name in products})
    needed = plan.model_flops(plan.workload.pairs_per_token)
    without_block = 1 - 1 / plan.shape.num_layers if plan.config.lora.rank else 1.0
    if uncounted or plan.executed_flops < LEAST_OF_MODEL * without_block * needed:
        raise ValueError(
            f"{100 * plan.executed_flops / needed:.0f}% of the model's FLOPs are in operations that the plan counts; "
            f"not counted: {', '.join(uncounted) or 'none that PyTorch knows as a product'}; add the operation to "
            f"PRODUCTS of logtrain/model/recompute.py, or its costs to its file of logtrain_kernels"
        )


def workload_of(config: PlanConfig, gpu: Gpu, corpus: Corpus) -> Workload:
    """The facts that a job's trace does not have. Raises ValueError if the GPU has no rates of the attention kernel."""
    # On Hopper FlashAttention-4 is as fast as 3, within 1% (torchtitan pull 4413, ecmwf/anemoi-core pull 959).
    kernel = "fa3" if config.attention_backend in ("fa3", "fa4") else "fa2"
    if kernel not in gpu.attention:
        raise ValueError(f"attention_backend = {config.attention_backend}: {gpu.name} has {', '.join(gpu.attention)}")
    loader, ranks = config.loader, config.gpus
    by_copy_engines = ("all_gather",) if config.parallel.symmetric_memory else ()  # sums still need processors
    if loader.attention == "row":
        return Workload(np.array([loader.seq_len]), kernel, by_copy_engines, ranks)
    longest, imbalance = corpus.micro_batches(loader.rows_per_batch, ranks, loader.accumulation(ranks))
    return Workload(
        lengths=corpus.lengths_S,
        kernel=kernel,
        by_copy_engines=by_copy_engines,
        ranks=ranks,
        entries=loader.rows_per_batch * float(corpus.sequences_R.mean()),
        longest=longest,
        imbalance=imbalance,
    )


def collectives(trace: Trace) -> dict[str, Collective]:
    """Number and bytes of the collectives of a step, by kind."""
    found: dict[str, Collective] = {}
    for op in trace.ops:
        if op.kind in COLLECTIVES:
            collective = found.setdefault(op.kind, {"count": 0, "bytes": 0})
            collective["count"] += trace.count(op)
            collective["bytes"] += trace.count(op) * max(op.read, op.written)
    return found
