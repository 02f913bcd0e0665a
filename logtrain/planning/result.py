"""The figures of a plan, as `logtrain plan --json` prints them. Nothing here imports torch."""

from typing import TypedDict


class Collective(TypedDict):
    """The collectives of one kind in a step, on one rank."""

    count: int
    """Number of the collectives."""
    bytes: int
    """Bytes of the larger side of each, input or output, summed."""


class PlanResult(TypedDict):
    """Memory, FLOPs, bytes, launches and collectives are exact; seconds, and what follows from them, are predicted."""

    fits: bool
    """Whether the high end of the reserved memory is available where context and libraries take the most."""
    peak_memory_gib: float
    """The most memory of tensors that is alive at once on a GPU."""
    reserved_memory_gib: float
    """Memory that the caching allocator takes for the tensors, with the gaps between them."""
    available_memory_gib: float
    """The GPU's memory without that of CUDA and NCCL."""
    memory_gib: dict[str, float]
    """The parts of the peak, by what the memory is for."""
    tokens_per_second_per_gpu: float
    """Tokens of documents; padding does not count."""
    step_seconds: float
    """Time of a step."""
    step_seconds_by: dict[str, float]
    """The parts of a step's time, which add up to it."""
    mfu_full: float
    """Share of the GPU's peak FLOP/s, counted as if every token attended to its whole row."""
    mfu_causal: float
    """Share of the GPU's peak FLOP/s, counting the pairs of tokens that the mask lets through."""
    flops_per_token_model: float
    """FLOPs of a token in a row, as `model_flops` counts them"""
    flops_per_token_executed: float
    """FLOPs of a token in a row that products and attention run, recomputation included"""
    collectives: dict[str, Collective]
    """Collectives by kind: all_gather, reduce_scatter, all_reduce, broadcast."""
    launches: int
    """Kernels of a step on a GPU."""
    elementwise_bytes: int
    """Bytes that a GPU's kernels read and write in a step, without products, attention and collectives."""
    host_syncs: int
    """Operations of the traced micro-batches that wait for the GPU."""
    tokens_per_step: int
    """Tokens of documents that all GPUs take in a step."""
    steps: int
    """Steps of the whole training."""
    train_minutes: float
    """Time of all steps, without start, validations and checkpoints."""
    gpu_hours: float
    """Time of all steps on all GPUs."""
    cost_usd: float
    """Price of these GPU-hours."""
    gpu: str
    """Name of the GPU."""
    gpus: int
    """Number of GPUs."""
    model: str
    """Where the model's shape is from."""
    documents: str
    """Where the lengths of documents are from."""
    intervals: dict[str, tuple[float, float]]
    """The ends of the intervals of figures, by their names; about four of five should lie within."""
    prediction: bool
    """Always true, because nothing was measured."""


ONLY_IF_IT_FITS = (
    *("tokens_per_second_per_gpu", "step_seconds", "step_seconds_by", "mfu_full", "mfu_causal"),
    *("train_minutes", "gpu_hours", "cost_usd"),
)  # a job that does not fit has no speed


def as_json(result: PlanResult) -> dict[str, object]:
    """The figures that are printed: those in time and dollars only of a job that fits."""
    hidden = () if result["fits"] else ONLY_IF_IT_FITS
    intervals = {name: ends for name, ends in result["intervals"].items() if name not in hidden}
    return {**{name: value for name, value in result.items() if name not in hidden}, "intervals": intervals}
