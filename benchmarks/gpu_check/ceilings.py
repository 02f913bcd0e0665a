"""What the machine reaches at best, which every other figure is held against: matrix products at the shapes of
Llama-3.1-8B, a large one for half a minute (clocks fall under load), a copy, a launch, and the clock of the links that
benchmarks.one_rank pretends.

    python -m benchmarks.gpu_check.ceilings [--seconds 30]
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.gpu_check.figures import tell
from benchmarks.one_rank.links import Links

TOKENS, SMALL_TOKENS = 16_384, 64  # of a micro-batch of launch/recipes/cpt_8xh100.toml; on a CPU
PRODUCTS = {  # of Llama-3.1-8B: features in and out
    "qkv": (4096, 6144),
    "out": (4096, 4096),
    "gate_up": (4096, 28_672),
    "down": (14_336, 4096),
    "head": (4096, 128_256),
}
CUBE, COPY_BYTES, REPEATS = 8192, 2**32, 20


def median_seconds(call: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """The median time of a call, the first three left out."""
    taken = []
    for _ in range(3 + repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
    return median(taken[3:])


def products(device: torch.device, dtype: torch.dtype) -> None:
    """Matrix products of random numbers at the model's shapes, and of a large cube: FLOP/s."""
    small = device.type != "cuda"
    tokens, divide, cube = (SMALL_TOKENS, 64, 256) if small else (TOKENS, 1, CUBE)
    shapes = {name: (tokens, k // divide, n // divide) for name, (k, n) in PRODUCTS.items()}
    for name, (m, k, n) in {**shapes, "cube": (cube, cube, cube)}.items():
        a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
        seconds = median_seconds(lambda a=a, b=b: a @ b.T, device)
        tell(f"product {name}", 2 * m * n * k / seconds, "FLOP/s")


def sustained(device: torch.device, dtype: torch.dtype, seconds: float) -> None:
    """The cube again and again for some seconds: FLOP/s of the last half."""
    size = 256 if device.type != "cuda" else CUBE
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    began, rates = time.perf_counter(), []
    while time.perf_counter() - began < seconds:
        rates.append(2 * size**3 / median_seconds(lambda: a @ b, device))
    tell("product cube, sustained", median(rates[len(rates) // 2 :]), "FLOP/s")


def memory(device: torch.device) -> None:
    """A copy within the device's memory, bytes read and written, and a kernel of one element."""
    size = COPY_BYTES if device.type == "cuda" else 2**20
    source, target = (torch.empty(size, dtype=torch.uint8, device=device).random_() for _ in range(2))
    tell("copy", 2 * size / median_seconds(lambda: target.copy_(source), device), "B/s")
    one = torch.zeros(1, device=device)
    tell("kernel of one element", median_seconds(lambda: one.add_(1), device, 200) * 1e6, "us")


def pretended_links(device: torch.device) -> None:
    """How long a collective of 128 MiB over pretended links takes, over how long it should."""
    links, whole = Links(8, device, 370e9), torch.empty(2**27 if device.type == "cuda" else 8, device=device).byte()

    def collective() -> None:
        links.begin("all_gather", whole)
        links.end("all_gather", whole)

    taken = median_seconds(collective, device)
    if device.type == "cuda":
        tell("pretended links, taken over asked", taken / links.seconds(whole.nbytes), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="of the sustained product")
    seconds = parser.parse_args().seconds
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    memory(device)
    products(device, dtype)
    pretended_links(device)
    sustained(device, dtype, seconds)


if __name__ == "__main__":
    main()
