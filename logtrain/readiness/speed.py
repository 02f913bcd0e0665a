"""How fast a rank's device multiplies and copies, and all of them gather and reduce: what a step is made of."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
import torch.distributed as dist

from logtrain.core.world import World

CUBE, COPIED = 8192, 1 << 32  # of a product, and bytes of a copy, on a GPU
SMALL_CUBE, SMALL_COPY = 384, 1 << 24  # on a CPU
COLLECTIVES = (1 << 27, 1 << 30)  # bytes of the larger side, on GPUs
SMALL_COLLECTIVES = (1 << 20, 1 << 23)
REPEATS, MOST_SHOWN_OFF = 10, 2.0  # seconds on a CPU, however long is asked for


class Speed(NamedTuple):
    """What one device reaches."""

    product: float
    """FLOP/s of a matrix product again and again, the last half of the time: bf16 on a GPU, fp32 on a CPU."""
    copy: float
    """Bytes a second that a copy within its memory reads and writes."""


class Collective(NamedTuple):
    """What all ranks reach together."""

    kind: str
    """all-gather or reduce-scatter."""
    size: int
    """Bytes of the larger side."""
    bandwidth: float
    """Bus bandwidth in bytes a second, as nccl-tests define it: size * (n - 1) / n / seconds."""


def median_seconds(call: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """The median time of a call, the first two left out."""
    taken = []
    for _ in range(2 + repeats):
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        taken.append(time.perf_counter() - began)
    return median(taken[2:])


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(world: World, seconds: float, look: Callable[[], None]) -> Speed:
    """The speed of this rank's device, all ranks at once, as in a step. `seconds`: of the products. `look`: called once
    while they go on.
    """
    device, on_gpu = world.device, world.device.type == "cuda"
    side, dtype = (CUBE, torch.bfloat16) if on_gpu else (SMALL_CUBE, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out, count = torch.empty_like(a), 20 if on_gpu else 1
    world.barrier()
    began, rates, has_looked = time.perf_counter(), [], False
    seconds = seconds if on_gpu else min(seconds, MOST_SHOWN_OFF)
    while (spent := time.perf_counter() - began) < seconds or len(rates) < 2:
        start = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b, out=out)
        if spent > seconds / 2 and not has_looked:
            look()  # the GPU works on what was launched
            has_looked = True
        wait(device)
        rates.append(2 * side**3 * count / (time.perf_counter() - start))
        world.note(f"products, {spent:.0f} of {seconds:.0f} s")
    if not has_looked:
        look()
    del a, b, out
    source = torch.zeros(COPIED if on_gpu else SMALL_COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    world.barrier()
    copied = median_seconds(lambda: target.copy_(source), device)
    return Speed(median(rates[len(rates) // 2 :]), 2 * source.nbytes / copied)


def collectives(world: World) -> list[Collective]:
    """The bandwidth of what FSDP does with weights and gradients. Every rank calls this; [] for one that is alone."""
    if world.size == 1:
        return []
    device, found = world.device, []
    for size in COLLECTIVES if device.type == "cuda" else SMALL_COLLECTIVES:
        whole = torch.zeros(size // 4 // world.size * world.size, device=device)
        part = torch.zeros(len(whole) // world.size, device=device)
        calls: dict[str, Callable[[], object]] = {
            "all-gather": lambda whole=whole, part=part: dist.all_gather_into_tensor(whole, part),
            "reduce-scatter": lambda whole=whole, part=part: dist.reduce_scatter_tensor(part, whole),
        }
        for kind, call in calls.items():
            world.note(f"{kind} of {size:,} bytes")
            world.barrier()
            seconds = median_seconds(call, device)
            found.append(Collective(kind, whole.nbytes, whole.nbytes * (world.size - 1) / world.size / seconds))
    return found
