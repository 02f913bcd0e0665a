"""The head's loss without a GPU: the memory it holds beside inputs and gradients, and its predicted time.

    python -m benchmarks.head [--tokens 16384] [--hidden 4096] [--vocab 128256] [--gpu h200] [--json]

Memory is traced: the real forward and backward on fake bf16 tensors that count as a GPU's. Time is predicted from the
constants in logtrain/planning/gpus, with the interval that their ranges give: as a benchmark of few iterations would
measure it, at full clocks, which is how the figures of others were measured; and in a training step, at the power
limit.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from logtrain.planning.gpu import Gpu
from logtrain.planning.gpu_file import read_gpu
from logtrain.planning.interval import Interval, interval
from logtrain_kernels import linear_cross_entropy, pretended_gpu
from logtrain_kernels.linear_cross_entropy import CHUNK_BYTES, chunks

OTHERS = """others, H 4,096, V 128,256, one H200, both passes (Liger-Kernel pull 1356), at 8,192 and 16,384 tokens:
  Liger CuTe SM90 4.19, 4.50; QuACK 4.33, 4.50"""
BF16, FP32 = 2, 4


@dataclass(frozen=True)
class HeadMemory:
    """What forward and backward hold at their peak."""

    chunks: int
    peak_gib: float
    inputs_gib: float
    gradients_gib: float  # dx in bf16, dW in fp32, as it is summed
    extra_gib: float  # beside inputs and gradients
    extra_with_dw_in_bf16_gib: float  # where only a dW in bf16 counts as a gradient


def traced(T: int, D: int, V: int) -> HeadMemory:
    """The memory of the head's loss for T tokens of width D and a vocabulary of V."""
    with FakeTensorMode(), pretended_gpu():
        x_TD = torch.empty(T, D, dtype=torch.bfloat16, requires_grad=True)
        weight_VD = torch.empty(V, D, dtype=torch.bfloat16, requires_grad=True)
        labels_T = torch.empty(T, dtype=torch.int64)
        tracker = MemTracker()
        tracker.track_external(x_TD, weight_VD, labels_T)
        with tracker:
            linear_cross_entropy(x_TD, weight_VD, labels_T).backward()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
        num_chunks = len(list(chunks(x_TD, weight_VD)))
    inputs, gradients = BF16 * (T * D + V * D) + 8 * T, BF16 * T * D + FP32 * V * D
    extra = peak["Total"] - inputs - gradients
    return HeadMemory(
        chunks=num_chunks,
        peak_gib=peak["Total"] / 2**30,
        inputs_gib=inputs / 2**30,
        gradients_gib=gradients / 2**30,
        extra_gib=extra / 2**30,
        extra_with_dw_in_bf16_gib=(extra + BF16 * V * D) / 2**30,
    )


def parts(T: int, D: int, V: int, num_chunks: int, gpu: Gpu, product_seconds: Callable[..., float]) -> dict[str, float]:
    """Microseconds that a token takes, part by part; `product_seconds` of M, N and K."""
    logits, weight, rows = BF16 * T * V, FP32 * V * D, -(-T // num_chunks)
    bandwidth = {
        "softmax": 3 * logits,  # read twice, written once
        "summing_dw": (2 * num_chunks - 1) * weight,  # written by every chunk, read by all but the first
        "scaling": weight + weight / 2 + 2 * BF16 * T * D,  # the backward: dW to bf16, dx
    }
    products = num_chunks * sum(product_seconds(*shape) for shape in ((rows, V, D), (rows, D, V), (V, D, rows)))
    seconds = {"products": products, **{name: size / gpu.bandwidth for name, size in bandwidth.items()}}
    return {name: taken / T * 1e6 for name, taken in seconds.items()}


def predicted(T: int, D: int, V: int, num_chunks: int, gpu: Gpu) -> dict[str, Interval]:
    """Microseconds a token at full clocks and at the power limit."""

    def at_full_clocks(varied: Gpu) -> float:
        full = parts(T, D, V, num_chunks, varied, lambda *shape: varied.padded_flops(*shape) / varied.wave_rate)
        return sum(full.values())

    def in_a_step(varied: Gpu) -> float:
        return sum(parts(T, D, V, num_chunks, varied, varied.product_rate_seconds).values())

    return {"full clocks": interval(gpu, at_full_clocks), "power limit": interval(gpu, in_a_step)}


def main() -> None:
    """Print the traced memory and the predicted time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("tokens", 16_384), ("hidden", 4_096), ("vocab", 128_256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--gpu", default="h200", help="a description in logtrain/planning/gpus")
    parser.add_argument("--json", action="store_true", help="one object instead of the lines")
    args = parser.parse_args()
    T, D, V, gpu = args.tokens, args.hidden, args.vocab, read_gpu(args.gpu)
    memory = traced(T, D, V)
    taken = predicted(T, D, V, memory.chunks, gpu)
    by_part = parts(T, D, V, memory.chunks, gpu, gpu.product_rate_seconds)
    if args.json:
        print(json.dumps({**vars(args), **asdict(memory), "microseconds_per_token": taken, "parts": by_part}))
        return
    print(f"T = {T:,}, H = {D:,}, V = {V:,}: {memory.chunks} chunks of up to {CHUNK_BYTES / 2**30:.0f} GiB of logits")
    print(
        f"memory (traced): {memory.peak_gib:.2f} GiB at the peak, inputs {memory.inputs_gib:.2f}, "
        f"gradients {memory.gradients_gib:.2f} (dW in fp32), extra {memory.extra_gib:.2f}; "
        f"counting only dW in bf16 as a gradient, extra {memory.extra_with_dw_in_bf16_gib:.2f}"
    )
    print(f"time (predicted, one {gpu.name}), us a token:")
    print(f"  {taken['full clocks']} in a benchmark, at full clocks; {taken['power limit']} in a step: ", end="")
    print(", ".join(f"{name} {part:.2f}" for name, part in by_part.items()))
    print(OTHERS)


if __name__ == "__main__":
    main()
