"""Reads the description of a GPU, a TOML file like those in logtrain/planning/gpus: every constant with its source, and
with its range, low and high, unless it is exact.

Nothing here imports torch, so that an unknown GPU is reported at once.
"""

import tomllib
from pathlib import Path
from typing import Any, TypeGuard

from logtrain.model.datasheet import peak_flops_of
from logtrain.planning.gpu import AttentionRate, Gpu, LinkRate, Range

GPUS = Path(__file__).parent / "gpus"
EXAMPLE = GPUS / "h100-sxm.toml"
OF_DEVICE = {"H200": "h200", "H100": "h100-sxm", "A100": "a100-80g"}  # a word of a device's name -> its file
OTHERS = ("PCIe", "NVL", "MIG", "40GB", "GH200")  # words of names of other GPUs with the same chip
NUMBERS = ("memory", "product", "burst", "bandwidth", "compiled_bandwidth", "network", "adapter")
NUMBERS_OR_ZERO = ("reserved", "launch", "host", "empty_block", "hop", "variation")
FACTORS = ("beside_product", "beside_attention", "beside_memory")


def read_gpu(name: str) -> Gpu:
    """The GPU of a file in `GPUS`, by its name there, or of any file by its path (*.toml).

    A file may leave out [float8], and the peak of a GPU that model/datasheet.py knows. Raises ValueError, one line,
    where there is no such file, or something in it is missing or of the wrong kind.
    """
    path = Path(name) if name.endswith(".toml") else GPUS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in GPUS.glob("*.toml")))
        raise ValueError(f"gpu {name}: not known; give one of {known}, or a TOML file like those in {GPUS}")
    file = GpuFile(path)
    return Gpu(
        name=file.name,
        peak=file.peak(),
        processors=file.integer("processors"),
        tile=file.tile(),
        float8=file.number("float8", least=1) if "float8" in file.facts else 0.0,
        attention=file.attention(),
        links=file.links(),
        **{key: file.number(key) for key in NUMBERS},
        **{key: file.number(key, least=0) for key in NUMBERS_OR_ZERO},
        **{key: file.number(key, least=1) for key in FACTORS},
        ranges=file.ranges,
    )


def gpu_of(device: str) -> str | None:
    """The name of the description of a GPU by what the driver calls it; None where there is none."""
    if any(word in device for word in OTHERS):
        return None
    return next((name for word, name in OF_DEVICE.items() if word in device), None)


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
        self.ranges: dict[str, Range] = {}

    def value(self, key: str) -> Any:
        """The value of [key], of any type, which must have its source beside it."""
        entry = self.facts.get(key)
        if not isinstance(entry, dict) or not {"value", "source"} <= entry.keys():
            raise ValueError(f"{self.path}: [{key}] needs a value and its source; see {EXAMPLE}")
        return entry["value"]

    def number(self, key: str, least: float | None = None) -> float:
        """The number of [key], which must be above 0, or with `least` at least that."""
        value = self.value(key)
        if not is_number(value) or not (value > 0 if least is None else value >= least):
            expected = "> 0" if least is None else f">= {least:g}"
            raise ValueError(f"{self.path}: [{key}] {value}: expected a number {expected}")
        self.read_range(key, self.facts[key], value)
        return value

    def read_range(self, key: str, entry: dict[str, Any], value: float) -> None:
        """Keep the range of [key], where `entry` has one; `value` lies within."""
        if not entry.keys() & {"low", "high"}:
            return
        low, high = entry.get("low"), entry.get("high")
        if not is_number(low) or not is_number(high) or not 0 < low <= value <= high:
            raise ValueError(f"{self.path}: [{key}] low = {low}, high = {high}: expected 0 < low <= {value:g} <= high")
        known = self.ranges.get(key, Range(1.0, 1.0))  # of another table of the same key
        self.ranges[key] = Range(min(known.low, low / value), max(known.high, high / value))

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

    def table(self, key: str, count: int) -> dict[int, list[float]]:
        """The rows of [key], `size = [count numbers]`, by size; at least two. Its low and high are shares of them."""
        entry: Any = self.facts
        for part in key.split("."):
            entry = entry.get(part) if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or "source" not in entry:
            raise ValueError(f"{self.path}: [{key}] needs rows and their source; see {EXAMPLE}")
        sizes = entry.keys() - {"source", "low", "high"}
        for size in sizes:
            row = entry[size]
            if not size.isdecimal() or not int(size) or not is_row(row, count):
                raise ValueError(f"{self.path}: [{key}] {size} = {row}: expected size = [{count} rates above 0]")
        if len(sizes) < 2:
            raise ValueError(f"{self.path}: [{key}] needs at least two sizes; see {EXAMPLE}")
        self.read_range(key.split(".")[0], entry, 1.0)
        return {int(size): entry[size] for size in sorted(sizes, key=int)}

    def attention(self) -> dict[str, dict[int, tuple[AttentionRate, ...]]]:
        """The rates of each attention kernel, by its name and by head size."""
        kernels = self.facts.get("attention")
        if not isinstance(kernels, dict) or not kernels:
            raise ValueError(f"{self.path}: [attention] needs rows and their source; see {EXAMPLE}")
        found: dict[str, dict[int, tuple[AttentionRate, ...]]] = {}
        for kernel, sizes in kernels.items():
            if not isinstance(sizes, dict) or not sizes or not all(size.isdecimal() and int(size) for size in sizes):
                raise ValueError(f"{self.path}: [attention.{kernel}] needs a table for each head size; see {EXAMPLE}")
            for size in sizes:
                rows = self.table(f"attention.{kernel}.{size}", 2)
                rates = tuple(AttentionRate(length, *rates) for length, rates in rows.items())
                found.setdefault(kernel, {})[int(size)] = rates
        return found

    def links(self) -> tuple[LinkRate, ...]:
        """The rates of collectives within a node."""
        return tuple(LinkRate(size, *row) for size, row in self.table("links", 1).items())


def is_row(row: Any, count: int) -> bool:
    """Whether a TOML value is a list of `count` numbers above 0."""
    return isinstance(row, list) and len(row) == count and all(is_number(rate) and rate > 0 for rate in row)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a TOML value is a number, which True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
