"""How long the operations of a trace take on a GPU, and how they overlap: a prediction.

A GPU is a TOML file in logtrain/planning/gpus, every constant with its source. An operation costs what
microbenchmarks of its kind say: matrix products by tiles and waves, attention by the lengths of the documents,
everything else by the bytes it moves, collectives by bytes and ranks. Then the streams run side by side, in the order
and with the waits that FSDP2 issued: kernels of several streams share the processors, collectives of one group run one
after the other, and while one runs kernels are slower.
"""

import tomllib
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from logtrain.planning.operation import COLLECTIVES, COMPUTE, Op

GPUS = Path(__file__).parent / "gpus"
NODE = 8  # GPUs that share NVLink
PIPELINE = 4  # tiles of K that are loaded before the first product of a kernel
SINGLE = ("memory", "reserved", "peak", "processors", "product", "bandwidth", "launch", "host", "links", "network")
SINGLE += ("compiled_bandwidth", "links_latency", "network_latency", "beside_collectives")


class Gpu:
    """The constants of a GPU: bytes, seconds, FLOP/s."""

    def __init__(self, name: str):
        path = Path(name) if name.endswith(".toml") else GPUS / f"{name}.toml"
        known = ", ".join(sorted(file.stem for file in GPUS.glob("*.toml")))
        if not path.is_file():
            raise ValueError(f"gpu {name}: not known; give one of {known}, or a TOML file like those in {GPUS}")
        try:
            facts = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: not TOML: {error}") from None
        for key in (*SINGLE, "tile", "attention"):
            entries = facts.get(key, {}).values() if key == "attention" else [facts.get(key, {})]
            for entry in entries or [{}]:
                if "source" not in entry or not (key == "attention" or "value" in entry):
                    raise ValueError(f"{path}: [{key}] needs a value and its source; see {GPUS / 'h100-sxm.toml'}")
        self.name = facts["name"]
        for key in SINGLE:
            setattr(self, key, facts[key]["value"])
        self.tile = facts["tile"]["value"]
        self.attention = {
            kernel: sorted((int(length), *rates) for length, rates in table.items() if length != "source")
            for kernel, table in facts["attention"].items()
        }
        self.wave_rate = self.product * self.padded_flops(8192, 8192, 8192) / (2 * 8192**3)  # no processor idle

    def padded_flops(self, m: int, n: int, k: int, batch: int = 1) -> float:
        """FLOPs of a product with what idle processors could have done: tiles are whole, a last wave may be part empty,
        and the first tiles of K are loaded before anything is multiplied. A narrow matrix gets narrower tiles, one of
        few tiles is split along K.
        """
        shapes = [(narrowed(a, m), narrowed(b, n)) for a, b in (self.tile[:2], self.tile[1::-1])]
        tile_m, tile_n = min(shapes, key=lambda shape: -(-m // shape[0]) * -(-n // shape[1]) * shape[0] * shape[1])
        tiles = -(-m // tile_m) * -(-n // tile_n) * batch
        splits = max(1, min(self.processors // tiles, k // (PIPELINE * self.tile[2])))
        waves = -(-tiles * splits // self.processors)
        depth = k / splits * waves + PIPELINE * self.tile[2]
        return 2 * tile_m * tile_n * depth * self.processors

    def product_seconds(self, op: Op) -> float:
        return max(self.padded_flops(*op.shape) / self.wave_rate, (op.read + op.written) / self.bandwidth)

    def attention_rate(self, kernel: str, length: np.ndarray, backward: bool) -> np.ndarray:
        """FLOP/s at a document length: time a FLOP is a line in 1 / length, between and beyond the measured lengths."""
        table = np.array(self.attention[kernel])
        x, y = 1 / table[::-1, 0], 1 / table[::-1, 2 if backward else 1]
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
        inverse = np.asarray(1 / length, dtype=float)
        return 1 / np.where(inverse > x[-1], y[-1] + slope * (inverse - x[-1]), np.interp(inverse, x, y))

    def collective_seconds(self, op: Op) -> float:
        """Latency + bytes over the bus bandwidth, as nccl-tests define it."""
        ranks = len(op.shape)
        if ranks == 1:
            return self.launch
        across = op.shape[-1] // NODE != op.shape[0] // NODE
        bandwidth, latency = (self.network, self.network_latency) if across else (self.links, self.links_latency)
        return latency + max(op.read, op.written) * (ranks - 1) / ranks * (1 + (op.kind == "all_reduce")) / bandwidth


def narrowed(side: int, size: int) -> int:
    """A tile's side for a matrix that may be smaller: a power of two, from 64 on."""
    return min(side, max(64, 1 << (size - 1).bit_length()))


@dataclass
class Workload:
    """What the trace does not know: the documents of a row, and which kernel attends."""

    lengths: np.ndarray  # tokens of every document that is attended to as one
    kernel: str = "fa2"
    quiet: tuple[str, ...] = ()  # kinds of collectives that copy engines run: kernels beside them are not slower

    @cached_property
    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
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

    def attention_seconds(self, op: Op, gpu: Gpu) -> float:
        """FlashAttention's time counts half the square of a length as causal. Grouped heads' extra sums are bytes."""
        backward = "backward" in op.name
        tokens, heads, _, size = op.shape
        compute = (10 if backward else 4) * tokens * heads * size * self.seconds_per_flop(gpu, backward)
        accumulated = 4 * tokens * heads * size if backward else 0
        return max(compute, (op.read + op.written) / gpu.bandwidth) + 2 * max(0, op.workspace - accumulated) / (
            gpu.bandwidth
        )


def seconds(op: Op, gpu: Gpu, workload: Workload) -> float:
    """Time of an operation that runs alone."""
    if op.kind in COLLECTIVES:
        return gpu.collective_seconds(op)
    if op.kind == "product":
        return op.launches * gpu.launch + gpu.product_seconds(op)
    if op.kind == "attention":
        return op.launches * gpu.launch + workload.attention_seconds(op, gpu)
    bandwidth = gpu.compiled_bandwidth if op.name == "compiled" else gpu.bandwidth
    return op.launches * gpu.launch + (op.read + op.written) / bandwidth


# ---- the streams side by side


@dataclass
class Timeline:
    start: list[float]
    end: list[float]
    alone: list[float]  # seconds an operation would take with nothing beside it
    issued: list[float]  # when the host launched it


def simulate(ops: Sequence[Op], gpu: Gpu, workload: Workload) -> Timeline:
    """When each operation runs. The host launches them one after the other and never waits for the GPU."""
    alone = [seconds(op, gpu, workload) for op in ops]
    issued = list(np.cumsum([op.launches * gpu.host for op in ops]))
    start, end, left = [0.0] * len(ops), [None] * len(ops), list(alone)
    streams, groups = defaultdict(deque), defaultdict(deque)
    for number, op in enumerate(ops):
        streams[op.stream].append(number)
        if op.kind in COLLECTIVES:
            groups[op.shape].append(number)
    running: set[int] = set()
    now = 0.0
    while running or any(streams.values()):
        wake = float("inf")
        for queue in streams.values():
            if not queue or queue[0] in running:
                continue
            number = queue[0]
            op = ops[number]
            if any(end[other] is None for other in op.waits):
                continue
            if op.kind in COLLECTIVES and groups[op.shape][0] != number:
                continue
            if issued[number] > now:
                wake = min(wake, issued[number])
                continue
            start[number] = now
            running.add(number)
        kernels = [n for n in running if ops[n].kind not in COLLECTIVES]
        loud = any(ops[n].kind in COLLECTIVES and ops[n].kind not in workload.quiet for n in running)
        slower = gpu.beside_collectives if loud else 1.0
        rate = 1 / (slower * max(1, len(kernels)))
        step = wake - now
        for number in running:
            step = min(step, left[number] / (rate if ops[number].kind not in COLLECTIVES else 1.0))
        now += step
        for number in list(running):
            left[number] -= step * (rate if ops[number].kind not in COLLECTIVES else 1.0)
            if left[number] <= 1e-12:
                end[number] = now
                running.remove(number)
                streams[ops[number].stream].popleft()
                if ops[number].kind in COLLECTIVES:
                    groups[ops[number].shape].popleft()
    return Timeline(start, end, alone, issued)


PARTS = ("gemm", "attention", "elementwise", "head", "sharding copies", "optimizer")
REST = ("slowdown beside collectives", "exposed communication", "host")


def part(op: Op) -> str:
    if op.phase == "update":
        return "optimizer"
    if op.sharding:
        return "sharding copies"
    if op.vocabulary:
        return "head"
    return {"product": "gemm", "attention": "attention"}.get(op.kind, "elementwise")


def breakdown(ops: Sequence[Op], repeats: Sequence[int], timeline: Timeline) -> tuple[float, dict[str, float]]:
    """(seconds of a step, where they go), along the compute stream; the parts add up to the step.

    A kernel's time beyond what it takes alone is slowdown; time in which the compute stream stands still is
    communication, or the host where the next kernel was not launched yet.
    """
    spent = dict.fromkeys((*PARTS, *REST), 0.0)
    before = 0.0
    for number, op in enumerate(ops):
        if op.stream != COMPUTE:
            continue
        count = 1 if op.phase == "update" else repeats[op.micro_batch - 1]
        gap, taken = timeline.start[number] - before, timeline.end[number] - timeline.start[number]
        late = min(gap, max(0.0, timeline.issued[number] - before))
        spent["host"] += count * late
        spent["exposed communication"] += count * (gap - late)
        if op.kind in COLLECTIVES:
            spent["exposed communication"] += count * taken
        else:
            spent[part(op)] += count * timeline.alone[number]
            spent["slowdown beside collectives"] += count * (taken - timeline.alone[number])
        before = timeline.end[number]
    return sum(spent.values()), spent
