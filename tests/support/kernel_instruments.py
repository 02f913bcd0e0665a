"""What the kernel evidence measures, applied to a kernel whose figures are known by hand. The test of it runs this."""

import json
import sys
from dataclasses import asdict

import torch
import triton
import triton.language as tl

LANES = 32


@triton.jit
def known_kernel(x_ptr, shared_ptr, y_ptr, N, BLOCK: tl.constexpr):
    at = tl.program_id(0) * N + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < N
    once = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(once)
    again = tl.load(x_ptr + at, mask=inside, other=0.0, volatile=True).to(tl.float32)
    tl.store(y_ptr + at, again * total + tl.load(shared_ptr), mask=inside)


def tensors(device: str, lanes: int) -> tuple[torch.Tensor, ...]:
    x = torch.ones(3 * lanes, dtype=torch.bfloat16, device=device)
    return x, torch.ones(1, device=device), torch.zeros(3 * lanes, device=device)


def count() -> dict:
    from benchmarks.kernels.counter import count_of

    x, shared, y = tensors("cpu", LANES)
    kernel = asdict(count_of(lambda: known_kernel[(3,)](x, shared, y, LANES, BLOCK=2 * LANES)))
    assert y.tolist() == [LANES + 1.0] * len(y)  # it still computes what it should
    a, b = torch.zeros(6, 10), torch.zeros(6, 10)
    calls = {
        "sum": lambda: a.sum(0),
        "fill": lambda: a.fill_(1.0),
        "copy": lambda: b.copy_(a),
        "add in place": lambda: b.add_(a),
        "view": lambda: a.view(60)[:5],
        "empty": lambda: torch.empty_like(a),
    }
    return {
        "kernel": {key: kernel[key] for key in ("loaded", "stored", "cached", "around")},
        "around": {name: count_of(call).around for name, call in calls.items()},
    }


def record() -> dict:
    from benchmarks.kernels.binary import compiled
    from benchmarks.kernels.record import launches_of

    x, shared, y = tensors("meta", 1024)
    asked_for = [x.device.type]

    def call() -> None:
        asked_for.extend([x.device.type, torch.cuda.get_device_properties(x.device).multi_processor_count])
        known_kernel[(3,)](x, shared, y, 1024, BLOCK=1024, num_warps=2)

    (launch,) = launches_of(call)
    binary = compiled(launch, 90)
    return {
        "kernel": launch.kernel.__name__,
        "grid": launch.grid,
        "options": launch.options,
        "asked_for": asked_for,
        "num_warps": binary.num_warps,
        "wide": binary.accesses_16,
        "narrow": binary.accesses_narrow,
    }


if __name__ == "__main__":
    print(json.dumps({"count": count, "record": record}[sys.argv[1]]()))
