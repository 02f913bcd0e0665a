"""Predicts how long each operation of a trace takes on a GPU that does nothing else.

The costs are those of microbenchmarks of each kind of operation: matrix products by tiles and waves, attention by the
lengths of the documents, everything else by the bytes it moves, collectives by bytes and ranks.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from logtrain.planning.gpu import Gpu
from logtrain.planning.operation import COLLECTIVES, Op

NODE = 8  # GPUs that share NVLink


@dataclass
class Workload:
    """Facts of a job that a trace does not have: its documents, its attention kernel, and what runs its collectives."""

    lengths: np.ndarray
    """Tokens of every stretch within which attention is causal (a document, or a whole row), int [D]."""
    kernel: str = "fa2"
    """Name of the attention kernel, a key of `Gpu.attention`."""
    by_copy_engines: tuple[str, ...] = ()
    """Kinds of collectives that copy engines run, which do not slow kernels down."""

    @cached_property
    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """(the lengths that occur, float64 [U]; the number of documents of each, int64 [U])"""
        lengths, counts = np.unique(self.lengths, return_counts=True)
        return lengths.astype(float), counts

    @cached_property
    def pairs_per_token(self) -> float:
        """Mean number of keys that a token attends to."""
        lengths, counts = self.histogram
        return float((counts * lengths * (lengths + 1) / 2).sum() / (counts * lengths).sum())

    def attention_flops(self, op: Op) -> float:
        """FLOPs of an attention operation: for each pair of tokens and element of a head 4 in the forward and 10 in the
        backward, which computes the scores again. Only products are counted.
        """
        tokens, heads, _, size = op.shape
        return (10 if "backward" in op.name else 4) * tokens * self.pairs_per_token * heads * size

    def seconds_per_flop(self, gpu: Gpu, backward: bool) -> float:
        """Seconds a token per FLOP of a pair: the sum of length^2 / 2 / rate(length) over the documents, over their
        tokens.
        """
        lengths, counts = self.histogram
        rates = gpu.attention_rate(self.kernel, lengths, backward)
        return float((counts * lengths**2 / 2 / rates).sum() / (counts * lengths).sum())


def seconds(op: Op, gpu: Gpu, workload: Workload) -> float:
    """Seconds of an operation that runs alone."""
    if op.kind in COLLECTIVES:
        return collective_seconds(op, gpu)
    if op.kind == "product":
        return op.launches * gpu.launch + product_seconds(op, gpu)
    if op.kind == "attention":
        return op.launches * gpu.launch + attention_seconds(op, gpu, workload)
    bandwidth = gpu.compiled_bandwidth if op.name == "compiled" else gpu.bandwidth
    return op.launches * gpu.launch + (op.read + op.written) / bandwidth


def product_seconds(op: Op, gpu: Gpu) -> float:
    """Seconds of a matrix product without its launch: those of its FLOPs or of its bytes, whichever is longer."""
    m, n, k, batch = op.shape
    return max(gpu.padded_flops(m, n, k, batch) / gpu.wave_rate, (op.read + op.written) / gpu.bandwidth)


def attention_seconds(op: Op, gpu: Gpu, workload: Workload) -> float:
    """Seconds of FlashAttention without its launches. The measured rates count half the square of a length as the pairs
    of a causal document. Summing the gradients of query heads that share keys and values is costed by its bytes.
    """
    backward = "backward" in op.name
    tokens, heads, _, size = op.shape
    compute = (10 if backward else 4) * tokens * heads * size * workload.seconds_per_flop(gpu, backward)
    dq_bytes = 4 * tokens * heads * size if backward else 0  # fp32; the rest of the workspace is dk and dv
    return max(compute, (op.read + op.written) / gpu.bandwidth) + 2 * max(0, op.workspace - dq_bytes) / gpu.bandwidth


def collective_seconds(op: Op, gpu: Gpu) -> float:
    """Seconds of a collective: its latency, and its bytes over the bus bandwidth as nccl-tests define it."""
    ranks = len(op.shape)
    if ranks == 1:
        return gpu.launch
    across = op.shape[-1] // NODE != op.shape[0] // NODE
    bandwidth, latency = (gpu.network, gpu.network_latency) if across else (gpu.links, gpu.links_latency)
    return latency + max(op.read, op.written) * (ranks - 1) / ranks * (1 + (op.kind == "all_reduce")) / bandwidth
