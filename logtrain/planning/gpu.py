"""The constants of a GPU, and the rates of products, attention and collectives on it, each with its range.

Nothing here imports torch, so that an unknown GPU is reported at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

PIPELINE = 4  # tiles along K that a kernel loads before its first product
CUBE = 8192  # side of the product that `product` and `burst` are measured with
# Constants that one cause moves, so that all are low or all are high at once: the chip's clocks and power, its memory,
# the processors that NCCL takes.
TOGETHER = (
    ("product", "burst"),
    ("bandwidth", "compiled_bandwidth"),
    ("beside_product", "beside_attention", "beside_memory"),
)


class Range(NamedTuple):
    """How far a constant may be from its value: what is published lies within in about four cases of five."""

    low: float
    """The low end, as a share of the value."""
    high: float
    """The high end, as a share of the value."""


class AttentionRate(NamedTuple):
    """The rate of attention over causal documents of one length."""

    length: int
    """Tokens of a document."""
    forward: float
    """FLOP/s of the forward."""
    backward: float
    """FLOP/s of the backward."""


class LinkRate(NamedTuple):
    """The rate of collectives of one size within a node."""

    size: int
    """Bytes of the larger side, input or output."""
    bandwidth: float
    """Bytes a second: bus bandwidth as nccl-tests define it."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The constants of a GPU, and the rates of kernels and collectives on it, in bytes, seconds and FLOP/s."""

    name: str
    """Product name."""
    memory: float
    """Bytes that torch.cuda reports as total memory."""
    reserved: float
    """Bytes of it that the CUDA context, NCCL and libraries take."""
    peak: float
    """FLOP/s in bf16 by the datasheet, without sparsity, by which MFU is counted."""
    processors: int
    """Streaming multiprocessors."""
    product: float
    """FLOP/s of large bf16 matrix products one after the other, when the power limit has lowered the clocks."""
    burst: float
    """FLOP/s of a bf16 matrix product of 8192 x 8192 x 8192 at full clocks, before the power limit is reached."""
    float8: float
    """Factor by which large matrix products are faster in float8 than in bf16; 0: it has none, or it is not known."""
    tile: tuple[int, int, int]
    """M, N and K of the tile that one processor computes of a matrix product."""
    bandwidth: float
    """Bytes a second that elementwise kernels read and write."""
    compiled_bandwidth: float
    """Bytes a second that kernels written by Inductor read and write."""
    launch: float
    """Seconds that a kernel of one element takes."""
    host: float
    """Seconds that the host takes to launch a kernel."""
    attention: dict[str, dict[int, tuple[AttentionRate, ...]]]
    """Rates of each kernel that there is, fa2 or fa3, by head size, the shortest documents first; at least two."""
    empty_block: float
    """Seconds that a block of attention adds to the grid that finds nothing to do and ends."""
    links: tuple[LinkRate, ...]
    """Rates within a node, the smallest collectives first."""
    network: float
    """Bytes a second over whole nodes: bus bandwidth as nccl-tests define it."""
    adapter: float
    """Bytes a second of one GPU's network adapter, in the same sense."""
    hop: float
    """Seconds that each node adds to a collective over nodes."""
    beside_product: float
    """Factor by which a matrix product takes longer while NCCL runs beside it."""
    beside_attention: float
    """The same factor of attention."""
    beside_memory: float
    """The same factor of kernels that only move bytes."""
    variation: float
    """Standard deviation of the speed of products among GPUs of this kind, as a share of the mean."""
    ranges: dict[str, Range]
    """How far each constant that is not exact may be from its value, by its name."""

    @property
    def available(self) -> float:
        """Bytes that tensors can take."""
        return self.memory - self.reserved

    @property
    def surely_available(self) -> float:
        """Bytes that tensors can take where context and libraries take the most that is known."""
        return self.memory - self.reserved * self.ranges.get("reserved", Range(1, 1)).high

    @cached_property
    def wave_rate(self) -> float:
        """FLOP/s of matrix products at full clocks while no processor is idle."""
        return self.burst * self.padded_flops(CUBE, CUBE, CUBE) / (2 * CUBE**3)

    def product_rate_seconds(self, m: int, n: int, k: int, batch: int = 1) -> float:
        """Seconds of the FLOPs of a product, by whichever of two limits is the longer. Power: every FLOP takes energy,
        wherever it is done, so that full waves gain nothing. Clocks: processors that are idle in the last wave cost
        time, but no energy.
        """
        return max(2 * m * n * k * batch / self.product, self.padded_flops(m, n, k, batch) / self.wave_rate)

    def padded_flops(self, m: int, n: int, k: int, batch: int = 1) -> float:
        """FLOPs of a product together with those that idle processors could have done meanwhile: tiles are whole, the
        last wave may be partly empty, and the first tiles along K are loaded before anything is multiplied. A narrow
        matrix gets narrower tiles, and one of few tiles is split along K.
        """
        shapes = [(narrowed(a, m), narrowed(b, n)) for a, b in (self.tile[:2], self.tile[1::-1])]
        tile_m, tile_n = min(shapes, key=lambda shape: -(-m // shape[0]) * -(-n // shape[1]) * shape[0] * shape[1])
        tiles = -(-m // tile_m) * -(-n // tile_n) * batch
        splits = max(1, min(self.processors // tiles, k // (PIPELINE * self.tile[2])))
        waves = -(-tiles * splits // self.processors)
        depth = k / splits * waves + PIPELINE * self.tile[2]
        return 2 * tile_m * tile_n * depth * self.processors

    def attention_rate(self, kernel: str, head_size: int, lengths: np.ndarray, backward: bool) -> np.ndarray:
        """FLOP/s at each document length, for the nearest head size that was measured. The time of a FLOP is taken to
        be linear in 1 / length, between the measured lengths and below the shortest.
        """
        sizes = self.attention[kernel]
        table = np.array(sizes[min(sizes, key=lambda size: abs(np.log(size / head_size)))])
        x, y = 1 / table[::-1, 0], 1 / table[::-1, 2 if backward else 1]
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
        inverse = np.asarray(1 / lengths, dtype=float)
        return 1 / np.where(inverse > x[-1], y[-1] + slope * (inverse - x[-1]), np.interp(inverse, x, y))

    def link_bandwidth(self, size: float) -> float:
        """Bytes a second of a collective of `size` bytes within a node, between the measured sizes linear in the
        logarithm of the size. One below the smallest takes as long as that: it is all latency.
        """
        table = np.array(self.links, dtype=float)
        known = np.interp(np.log(max(size, table[0, 0])), np.log(table[:, 0]), table[:, 1])
        return float(known) * min(1.0, size / table[0, 0])

    def extremes(self) -> Iterator[tuple["Gpu", "Gpu"]]:
        """For each cause of doubt: (this GPU with the constants that it moves at their low ends, at the high ends)."""
        in_groups = {name for names in TOGETHER for name in names}
        alone = [(name,) for name in self.ranges if name not in in_groups and name != "reserved"]
        for names in (*TOGETHER, *alone):
            if known := [name for name in names if name in self.ranges]:
                low = {name: scaled(getattr(self, name), self.ranges[name].low) for name in known}
                high = {name: scaled(getattr(self, name), self.ranges[name].high) for name in known}
                yield replace(self, **low), replace(self, **high)


def scaled(value: Any, factor: float) -> Any:
    """A constant times `factor`; of a table of rates, each rate."""
    if isinstance(value, dict):
        return {key: scaled(entry, factor) for key, entry in value.items()}
    if isinstance(value, AttentionRate):
        return AttentionRate(value.length, value.forward * factor, value.backward * factor)
    if isinstance(value, LinkRate):
        return LinkRate(value.size, value.bandwidth * factor)
    return tuple(scaled(entry, factor) for entry in value) if isinstance(value, tuple) else value * factor


def narrowed(side: int, size: int) -> int:
    """The side of a tile for a matrix that may be smaller: a power of two, at least 64."""
    return min(side, max(64, 1 << (size - 1).bit_length()))
