"""The head's loss without a GPU: the memory it holds beside inputs and gradients, and its predicted time on an H100.

    python -m benchmarks.head [--tokens 16384] [--hidden 4096] [--vocab 128256] [--json]

Memory is traced: the real forward and backward on fake bf16 tensors that count as a GPU's. Time is predicted: each
part's work over the rate that a microbenchmark has shown for it. Matrix products at the rate of the cube 10,240^3, the
lowest of the published ones and the nearest in size; kernels at the bandwidth that good ones reach.
"""

import argparse
import json
from dataclasses import asdict, dataclass

import torch
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from logtrain_kernels import linear_cross_entropy, pretended_gpu
from logtrain_kernels.linear_cross_entropy import CHUNK_BYTES, chunks

GEMM_FLOPS = 720e12  # H100 SXM, bf16, 10,240^3 (PyTorch performance threads; 8,192^3 in bursts: 797e12)
BYTES_PER_SECOND = 2.95e12  # of 3.35e12: what norms of 32K x 4K reach (quack)
LIGERS_BEST = 50.4e-3 / 8192 * 1e6  # us a token: CuTe kernels, H 4,096, V 131,072, both passes (Liger's README)
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


def predicted(T: int, D: int, V: int, num_chunks: int) -> dict[str, float]:
    """Microseconds that a token takes, part by part."""
    logits, weight = BF16 * T * V, FP32 * V * D
    bandwidth = {
        "softmax": 3 * logits,  # read twice, written once
        "summing_dw": (2 * num_chunks - 1) * weight,  # written by every chunk, read by all but the first
        "scaling": weight + weight / 2 + 2 * BF16 * T * D,  # the backward: dW to bf16, dx
    }
    parts = {"products": 3 * 2 * T * D * V / GEMM_FLOPS, **{k: v / BYTES_PER_SECOND for k, v in bandwidth.items()}}
    return {name: seconds / T * 1e6 for name, seconds in parts.items()}


def main() -> None:
    """Print the traced memory and the predicted time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("tokens", 16_384), ("hidden", 4_096), ("vocab", 128_256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true", help="one object instead of the lines")
    args = parser.parse_args()
    T, D, V = args.tokens, args.hidden, args.vocab
    memory = traced(T, D, V)
    parts = predicted(T, D, V, memory.chunks)
    total = sum(parts.values())
    if args.json:
        print(json.dumps({**vars(args), **asdict(memory), "microseconds_per_token": total, "parts": parts}))
        return
    print(f"T = {T:,}, H = {D:,}, V = {V:,}: {memory.chunks} chunks of up to {CHUNK_BYTES / 2**30:.0f} GiB of logits")
    print(
        f"memory (traced): {memory.peak_gib:.2f} GiB at the peak, inputs {memory.inputs_gib:.2f}, "
        f"gradients {memory.gradients_gib:.2f} (dW in fp32), extra {memory.extra_gib:.2f}; "
        f"counting only dW in bf16 as a gradient, extra {memory.extra_with_dw_in_bf16_gib:.2f}"
    )
    print(f"time (predicted, one H100): {total:.2f} us a token; Liger's best at V = 131,072: {LIGERS_BEST:.2f}")
    flops = f"3 products: 6 V H = {6 * V * D / 1e9:.2f} GFLOP at {GEMM_FLOPS / 1e12:.0f} TFLOP/s"
    for name, work in zip(
        parts, (flops, "logits: 2 reads, 1 write", "fp32 dW, each chunk", "dW to bf16, dx"), strict=True
    ):
        print(f"  {name:11} {parts[name]:5.2f} us  {work}")
    print(f"  kernels at {BYTES_PER_SECOND / 1e12:.2f} TB/s; nothing is assumed to overlap")


if __name__ == "__main__":
    main()
