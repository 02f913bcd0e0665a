"""Where a profiled step's time goes, in the words of the plan (planning/timeline.py), read from the profiler's trace.

A kernel belongs to the operation that launched it, which the trace tells with the shapes of its inputs. The compute
stream is the one with the most time in kernels; while nothing runs on it, it waits for a collective or for the host.
"""

import gzip
import json
from bisect import bisect_right
from collections import defaultdict
from pathlib import Path
from typing import Any

from logtrain.planning.timeline import KERNELS

Event = dict[str, Any]
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
IDLE = "nothing runs"


def seconds_by_category(trace: str | Path, vocab_size: int) -> dict[str, float]:
    """Seconds of the compute stream by the plan's KERNELS, and in which nothing ran on it, from its first kernel to its
    last. {} where the trace has no kernels. `vocab_size`: a dimension of it marks the head's operations.
    """
    opened = gzip.open(trace, "rt") if str(trace).endswith(".gz") else open(trace)  # noqa: SIM115  (closed below)
    with opened as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    kernels = on_compute_stream([event for event in events if event["cat"] in DEVICE_WORK])
    if not kernels:
        return {}
    launchers = {e["args"]["External id"]: e for e in events if e["cat"] == "cpu_op" and "External id" in e["args"]}
    stretches = Stretches(events)
    spent: dict[str, float] = dict.fromkeys((*KERNELS, IDLE), 0.0)
    busy_until = kernels[0]["ts"]
    for kernel in kernels:
        launcher = launchers.get(kernel["args"].get("External id"))
        spent[category(kernel, launcher, stretches, vocab_size)] += kernel["dur"] / 1e6
        spent[IDLE] += max(0.0, kernel["ts"] - busy_until) / 1e6
        busy_until = max(busy_until, kernel["ts"] + kernel["dur"])
    return spent


def on_compute_stream(work: list[Event]) -> list[Event]:
    """What the stream with the most kernel time ran, in order. The waiting kernels of links.py do not count."""
    streams: dict[Any, list[Event]] = defaultdict(list)
    for event in work:
        if "wait_kernel" not in event["name"]:
            streams[event["args"].get("stream")].append(event)
    busiest = max(streams.values(), key=lambda found: sum(e["dur"] for e in found), default=[])
    return sorted(busiest, key=lambda event: event["ts"])


class Stretches:
    """The stretches of FSDP2's own work on each host thread, which it names "FSDP::..."."""

    def __init__(self, events: list[Event]):
        self.of_thread: dict[Any, list[tuple[float, float]]] = defaultdict(list)
        for event in events:
            if event["cat"] == "user_annotation" and event["name"].startswith("FSDP::"):
                self.of_thread[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        for stretches in self.of_thread.values():
            stretches.sort()

    def hold(self, operation: Event) -> bool:
        """Whether an operation began within one. None that matters lies within another."""
        stretches = self.of_thread[operation["tid"]]
        before = bisect_right(stretches, (operation["ts"], float("inf")))
        return any(start <= operation["ts"] < end for start, end in stretches[max(0, before - 3) : before])


def category(kernel: Event, launcher: Event | None, stretches: Stretches, vocab_size: int) -> str:
    """Which of KERNELS a kernel counts as, by its launcher's name and shapes, else by its own name."""
    name = (launcher["name"] if launcher else kernel["name"]).lower()
    shapes = launcher["args"].get("Input Dims", []) if launcher else []
    if any(word in name for word in ("adamw", "_foreach_norm", "_foreach_mul", "_foreach_div")):
        return "optimizer"
    if "flash" in kernel["name"].lower() or "attn" in name:
        return "attention"
    if name.startswith("fsdp::") or (launcher and stretches.hold(launcher)):
        return "sharding copies"
    if "embedding" not in name and any(vocab_size in shape for shape in flat(shapes)):
        return "head"
    if name.removeprefix("aten::") in ("mm", "addmm", "addmm_", "matmul", "bmm"):
        return "gemm"
    return "elementwise"


def flat(shapes: list) -> list[list]:
    """The shapes of an operation's inputs, those of its lists of tensors among them."""
    return [inner for shape in shapes for inner in (shape if shape and isinstance(shape[0], list) else [shape])]
