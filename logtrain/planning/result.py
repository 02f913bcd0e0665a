"""What a plan says, as `logtrain plan --json` prints it. Nothing here imports torch: benchmarks read the JSON."""

from typing import TypedDict


class Collective(TypedDict):
    """The collectives of one kind in a step, on one rank."""

    count: int
    bytes: int
    """of the larger side of each, in or out"""


class PlanResult(TypedDict):
    """Memory, FLOPs, bytes, launches and collectives are exact; seconds, and what follows from them, are predicted."""

    fits: bool
    """the reserved memory is available"""
    peak_memory_gib: float
    """most memory of tensors alive at once, on a GPU"""
    reserved_memory_gib: float
    """what the caching allocator takes for them, with the gaps between"""
    available_memory_gib: float
    """the GPU's memory without what CUDA and NCCL take"""
    memory_gib: dict[str, float]
    """the peak by what the memory is for"""
    tokens_per_second_per_gpu: float
    """tokens of documents, without those that fill rows up"""
    step_seconds: float
    step_seconds_by: dict[str, float]
    """the parts of a step's time; they add up to it"""
    mfu_full: float
    """share of the GPU's peak FLOP/s if every token attended to its whole row"""
    mfu_causal: float
    """share of the GPU's peak FLOP/s, of pairs that the mask lets through"""
    flops_per_token_model: float
    """FLOPs of a token in a row, as `model_flops` counts them"""
    flops_per_token_executed: float
    """FLOPs of a token in a row that products and attention run, recomputation included"""
    collectives: dict[str, Collective]
    """by kind: all_gather, reduce_scatter, all_reduce, broadcast"""
    launches: int
    """kernels of a step on a GPU"""
    elementwise_bytes: int
    """read and written by a GPU's kernels in a step, without products, attention and collectives"""
    host_syncs: int
    """operations of the traced micro-batches that wait for the GPU"""
    tokens_per_step: int
    """tokens of documents that all GPUs take in a step"""
    steps: int
    """of the whole training"""
    train_minutes: float
    """of the steps alone: no start, validation or checkpoint"""
    gpu_hours: float
    cost_usd: float
    gpu: str
    gpus: int
    model: str
    """where the model's shape is from"""
    documents: str
    """where the lengths of documents are from"""
    prediction: bool
    """always true: nothing of it was measured"""
