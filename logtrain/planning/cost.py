"""Predicts how long each operation of a trace takes on a GPU that does nothing else.

The costs are those of microbenchmarks of each kind of operation: matrix products by power and by tiles and waves,
attention by head size and the lengths of the documents, everything else by the bytes it moves, collectives by their
size and where their ranks are.
"""

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np

from logtrain.planning.gpu import Gpu
from logtrain.planning.operation import COLLECTIVES, Op

NODE = 8  # GPUs that share NVLink
FLOAT8_PRODUCT = "_scaled_mm"
BLOCK = 128  # tokens of a document that one block of FlashAttention-2 takes, in the forward as in the backward


@dataclass
class Workload:
    """Facts of a job that a trace does not have: its documents and how they lie in micro-batches, its attention kernel,
    its ranks, and what runs its collectives.
    """

    lengths: np.ndarray
    """Tokens of every stretch within which attention is causal (a document, or a whole row), int [D]."""
    kernel: str = "fa2"
    """Name of the attention kernel, a key of `Gpu.attention`."""
    by_copy_engines: tuple[str, ...] = ()
    """Kinds of collectives that copy engines run, which do not slow kernels down."""
    ranks: int = 1
    """GPUs that wait for one another."""
    entries: float = 0.0
    """Sequences of a micro-batch, on average; 0: all are equally long."""
    longest: float = 0.0
    """Tokens of the longest document of a micro-batch, on average; 0: all are equally long."""
    imbalance: float = 0.0
    """By how much the rank with the most attention has more than the mean, on average, as a share of the mean."""

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

    def seconds_per_flop(self, gpu: Gpu, head_size: int, backward: bool) -> float:
        """Seconds a token per FLOP of a pair: the sum of length^2 / 2 / rate(length) over the documents, over their
        tokens.
        """
        lengths, counts = self.histogram
        rates = gpu.attention_rate(self.kernel, head_size, lengths, backward)
        return float((counts * lengths**2 / 2 / rates).sum() / (counts * lengths).sum())

    def empty_blocks(self, tokens: int) -> float:
        """Blocks of a head in FlashAttention-2's grid that find nothing to do in a micro-batch of `tokens`: the grid
        has as many for every sequence as the longest fills. FlashAttention-3 skips them.
        """
        if self.kernel != "fa2" or not self.entries:
            return 0.0
        lengths, counts = self.histogram
        filled = tokens * float((counts * np.ceil(lengths / BLOCK)).sum() / (counts * lengths).sum())
        return max(0.0, self.entries * np.ceil(self.longest / BLOCK) - filled)


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
    faster = gpu.float8 if op.name == FLOAT8_PRODUCT else 1.0
    return max(gpu.product_rate_seconds(m, n, k, batch) / faster, (op.read + op.written) / gpu.bandwidth)


def attention_seconds(op: Op, gpu: Gpu, workload: Workload) -> float:
    """Seconds of FlashAttention without its launches. The measured rates count half the square of a length as the pairs
    of a causal document. Summing the gradients of query heads that share keys and values is costed by its bytes.
    """
    backward = "backward" in op.name
    tokens, heads, _, size = op.shape
    compute = (10 if backward else 4) * tokens * heads * size * workload.seconds_per_flop(gpu, size, backward)
    compute += heads * workload.empty_blocks(tokens) * gpu.empty_block
    dq_bytes = 4 * tokens * heads * size if backward else 0  # fp32; the rest of the workspace is dk and dv
    return max(compute, (op.read + op.written) / gpu.bandwidth) + 2 * max(0, op.workspace - dq_bytes) / gpu.bandwidth


def collective_seconds(op: Op, gpu: Gpu) -> float:
    """Seconds of a collective: its bytes over the bus bandwidth as nccl-tests define it, and a hop for every node.

    The bandwidth of a size within a node holds over nodes, too, but for two limits: that of a node's adapters together,
    and that of the adapters of those GPUs of a node that take part: replicas average over one GPU of each node.
    """
    ranks, size = len(op.shape), max(op.read, op.written)
    if ranks == 1:
        return gpu.launch
    nodes = len({rank // NODE for rank in op.shape})
    bandwidth = gpu.link_bandwidth(size)
    if nodes > 1:
        limit = min(gpu.network, gpu.adapter * ranks / nodes)
        bandwidth *= min(1.0, limit / gpu.links[-1].bandwidth)
    moved = size * (ranks - 1) / ranks * (1 + (op.kind == "all_reduce"))
    return moved / bandwidth + (gpu.hop * nodes if nodes > 1 else 0.0)


def beside_collectives(op: Op, gpu: Gpu) -> float:
    """The factor by which a kernel takes longer while NCCL runs beside it."""
    return {"product": gpu.beside_product, "attention": gpu.beside_attention}.get(op.kind, gpu.beside_memory)


def slowest_of(ranks: int, gpu: Gpu) -> float:
    """By how much the slowest of so many GPUs is slower in products than the mean, on average, as a share of the mean:
    the expected largest of `ranks` draws of a normal distribution (Blom 1958).
    """
    return gpu.variation * NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)) if ranks > 1 else 0.0
