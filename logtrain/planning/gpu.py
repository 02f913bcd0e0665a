"""The constants of a GPU, each with its source, read from a TOML file like those in logtrain/planning/gpus.

Nothing here imports torch, so that an unknown GPU is reported at once.
"""

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from logtrain.model.datasheet import peak_flops_of

GPUS = Path(__file__).parent / "gpus"
EXAMPLE = GPUS / "h100-sxm.toml"
PIPELINE = 4  # tiles along K that a kernel loads before its first product


class AttentionRate(NamedTuple):
    """The rate of attention over causal documents of one length."""

    length: int
    """Tokens of a document."""
    forward: float
    """FLOP/s of the forward."""
    backward: float
    """FLOP/s of the backward."""


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
    """FLOP/s that a bf16 matrix product of 8192 x 8192 x 8192 sustains."""
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
    attention: dict[str, tuple[AttentionRate, ...]]
    """Rates of each kernel that there is, fa2 or fa3, the shortest documents first; at least two."""
    links: float
    """Bytes a second within a node: bus bandwidth as nccl-tests define it."""
    links_latency: float
    """Seconds that a collective within a node takes beside its bytes."""
    network: float
    """Bytes a second over nodes: bus bandwidth as nccl-tests define it."""
    network_latency: float
    """Seconds that a collective over nodes takes beside its bytes."""
    beside_collectives: float
    """Factor by which a kernel takes longer while NCCL runs beside it."""

    @property
    def available(self) -> float:
        """Bytes that tensors can take."""
        return self.memory - self.reserved

    @cached_property
    def wave_rate(self) -> float:
        """FLOP/s of matrix products while no processor is idle."""
        return self.product * self.padded_flops(8192, 8192, 8192) / (2 * 8192**3)

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

    def attention_rate(self, kernel: str, lengths: np.ndarray, backward: bool) -> np.ndarray:
        """FLOP/s at each document length. The time of a FLOP is taken to be linear in 1 / length, between the measured
        lengths and below the shortest.
        """
        table = np.array(self.attention[kernel])
        x, y = 1 / table[::-1, 0], 1 / table[::-1, 2 if backward else 1]
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
        inverse = np.asarray(1 / lengths, dtype=float)
        return 1 / np.where(inverse > x[-1], y[-1] + slope * (inverse - x[-1]), np.interp(inverse, x, y))


def narrowed(side: int, size: int) -> int:
    """The side of a tile for a matrix that may be smaller: a power of two, at least 64."""
    return min(side, max(64, 1 << (size - 1).bit_length()))


def read_gpu(name: str) -> Gpu:
    """The GPU of a file in `GPUS`, by its name there, or of any file by its path (*.toml).

    A file may leave out the peak of a GPU that model/datasheet.py knows. Raises ValueError, one line, where there is no
    such file, or something in it is missing or of the wrong kind.
    """
    path = Path(name) if name.endswith(".toml") else GPUS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in GPUS.glob("*.toml")))
        raise ValueError(f"gpu {name}: not known; give one of {known}, or a TOML file like those in {GPUS}")
    file = GpuFile(path)
    return Gpu(
        name=file.name,
        memory=file.number("memory"),
        reserved=file.number("reserved", zero=True),
        peak=file.peak(),
        processors=file.integer("processors"),
        product=file.number("product"),
        tile=file.tile(),
        bandwidth=file.number("bandwidth"),
        compiled_bandwidth=file.number("compiled_bandwidth"),
        launch=file.number("launch", zero=True),
        host=file.number("host", zero=True),
        attention=file.attention(),
        links=file.number("links"),
        links_latency=file.number("links_latency", zero=True),
        network=file.number("network"),
        network_latency=file.number("network_latency", zero=True),
        beside_collectives=file.number("beside_collectives"),
    )


class GpuFile:
    """A TOML file of a GPU. Every method raises ValueError, one line, for what is missing or of the wrong kind."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.facts = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not TOML: {error}") from None
        if not isinstance(self.facts.get("name"), str):
            raise ValueError(f"{path}: name: expected a string; see {EXAMPLE}")
        self.name: str = self.facts["name"]

    def value(self, key: str) -> Any:
        """The value of [key], of any type, which must have its source beside it."""
        entry = self.facts.get(key)
        if not isinstance(entry, dict) or not {"value", "source"} <= entry.keys():
            raise ValueError(f"{self.path}: [{key}] needs a value and its source; see {EXAMPLE}")
        return entry["value"]

    def number(self, key: str, zero: bool = False) -> float:
        """The number of [key], which must be above 0, or with `zero` at least 0."""
        value = self.value(key)
        if not is_number(value) or not (value > 0 or (zero and value == 0)):
            raise ValueError(f"{self.path}: [{key}] {value}: expected a number {'>=' if zero else '>'} 0")
        return value

    def integer(self, key: str) -> int:
        """The integer of [key], which must be above 0."""
        value = self.number(key)
        if not isinstance(value, int):
            raise ValueError(f"{self.path}: [{key}] {value}: expected an integer")
        return value

    def tile(self) -> tuple[int, int, int]:
        """The sides M, N and K of [tile]."""
        value = self.value("tile")
        if not isinstance(value, list) or len(value) != 3 or not all(type(n) is int and n > 0 for n in value):
            raise ValueError(f"{self.path}: [tile] {value}: expected three integers: M, N, K")
        return value[0], value[1], value[2]

    def peak(self) -> float:
        """The FLOP/s of [peak], else those of the datasheet of the GPU's name."""
        if "peak" in self.facts:
            return self.number("peak")
        known = peak_flops_of(self.name)
        if known is None:
            raise ValueError(f"{self.path}: the peak of {self.name} is not known; [peak] needs a value and its source")
        return known

    def attention(self) -> dict[str, tuple[AttentionRate, ...]]:
        """The rates of each attention kernel, by its name."""
        tables = self.facts.get("attention")
        if not isinstance(tables, dict) or not tables:
            raise ValueError(f"{self.path}: [attention] needs a value and its source; see {EXAMPLE}")
        return {kernel: self.rates(kernel, table) for kernel, table in tables.items()}

    def rates(self, kernel: str, table: Any) -> tuple[AttentionRate, ...]:
        """The rates of one attention kernel, the shortest documents first."""
        if not isinstance(table, dict) or "source" not in table:
            raise ValueError(f"{self.path}: [attention] needs a value and its source; see {EXAMPLE}")
        lengths = table.keys() - {"source"}
        for length in lengths:
            pair = table[length]
            rates = isinstance(pair, list) and len(pair) == 2 and all(is_number(rate) and rate > 0 for rate in pair)
            if not length.isdecimal() or not int(length) or not rates:
                raise ValueError(
                    f"{self.path}: [attention.{kernel}] {length} = {pair}: expected length = [forward, backward]"
                )
        if len(lengths) < 2:
            raise ValueError(f"{self.path}: [attention.{kernel}] needs at least two lengths; see {EXAMPLE}")
        return tuple(sorted(AttentionRate(int(length), *table[length]) for length in lengths))


def is_number(value: Any) -> bool:
    """Whether a TOML value is a number, which True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
