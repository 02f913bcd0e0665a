"""How long each operation of a trace takes on a GPU that does nothing else: a prediction.

An operation costs what microbenchmarks of its kind say: matrix products by tiles and waves, attention by the lengths
of the documents, everything else by the bytes it moves, collectives by bytes and ranks.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from logtrain.planning.gpu import Gpu
from logtrain.planning.operation import COLLECTIVES, Op

NODE = 8  # GPUs that share NVLink


@dataclass
class Workload:
    """What a trace does not know: the documents of a row, which kernel attends, who runs the collectives."""

    lengths: np.ndarray
    """int [D]: tokens of every document that is attended to as one"""
    kernel: str = "fa2"
    """of attention: a key of Gpu.attention"""
    by_copy_engines: tuple[str, ...] = ()
    """kinds of collectives that copy engines run: kernels beside them are not slower"""

    @cached_property
    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """(lengths that occur, float64; how often each does, int64)"""
        lengths, counts = np.unique(self.lengths, return_counts=True)
        return lengths.astype(float), counts

    @cached_property
    def pairs_per_token(self) -> float:
        """(query, key) pairs that the mask lets through."""
        lengths, counts = self.histogram
        return float((counts * lengths * (lengths + 1) / 2).sum() / (counts * lengths).sum())

    def attention_flops(self, op: Op) -> float:
        """4 forward and 10 backward for a pair and element of a head: products only, the scores computed twice."""
        tokens, heads, _, size = op.shape
        return (10 if "backward" in op.name else 4) * tokens * self.pairs_per_token * heads * size

    def seconds_per_flop(self, gpu: Gpu, backward: bool) -> float:
        """Sum of length^2 / 2 / rate(length) over the documents, for a token."""
        lengths, counts = self.histogram
        rates = gpu.attention_rate(self.kernel, lengths, backward)
        return float((counts * lengths**2 / 2 / rates).sum() / (counts * lengths).sum())


def seconds(op: Op, gpu: Gpu, workload: Workload) -> float:
    """Time of an operation that runs alone."""
    if op.kind in COLLECTIVES:
        return collective_seconds(op, gpu)
    if op.kind == "product":
        return op.launches * gpu.launch + product_seconds(op, gpu)
    if op.kind == "attention":
        return op.launches * gpu.launch + attention_seconds(op, gpu, workload)
    bandwidth = gpu.compiled_bandwidth if op.name == "compiled" else gpu.bandwidth
    return op.launches * gpu.launch + (op.read + op.written) / bandwidth


def product_seconds(op: Op, gpu: Gpu) -> float:
    """Time of a matrix product without its launch: of its FLOPs or of its bytes, whichever is longer."""
    m, n, k, batch = op.shape
    return max(gpu.padded_flops(m, n, k, batch) / gpu.wave_rate, (op.read + op.written) / gpu.bandwidth)


def attention_seconds(op: Op, gpu: Gpu, workload: Workload) -> float:
    """Time of FlashAttention without its launches. What was measured counts half the square of a length as causal. The
    sums over query heads that share keys and values are bytes.
    """
    backward = "backward" in op.name
    tokens, heads, _, size = op.shape
    compute = (10 if backward else 4) * tokens * heads * size * workload.seconds_per_flop(gpu, backward)
    dq_bytes = 4 * tokens * heads * size if backward else 0  # fp32; the rest of the workspace is dk and dv
    return max(compute, (op.read + op.written) / gpu.bandwidth) + 2 * max(0, op.workspace - dq_bytes) / gpu.bandwidth


def collective_seconds(op: Op, gpu: Gpu) -> float:
    """Latency + bytes over the bus bandwidth, as nccl-tests define it."""
    ranks = len(op.shape)
    if ranks == 1:
        return gpu.launch
    across = op.shape[-1] // NODE != op.shape[0] // NODE
    bandwidth, latency = (gpu.network, gpu.network_latency) if across else (gpu.links, gpu.links_latency)
    return latency + max(op.read, op.written) * (ranks - 1) / ranks * (1 + (op.kind == "all_reduce")) / bandwidth
