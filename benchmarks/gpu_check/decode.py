"""The generator's decode step, captured as a CUDA graph beside launched kernel by kernel: tokens a second, and whether
both give the same logits.

    python -m benchmarks.gpu_check.decode [--model Llama-3.1-8B] [--sequences 1 8 64]

Every sequence has 1,024 tokens in the cache; weights are random. Without a GPU there is no graph, so only the plain
step runs.
"""

import argparse
import time
from statistics import median

import torch

from benchmarks.gpu_check.figures import tell
from benchmarks.weights import DeviceWeights
from logtrain.core.world import compute_dtype
from logtrain.generation.kv_cache import CachedModel, Chunk, slot_bytes
from logtrain.model.weights import read_model
from logtrain.planning.shape import read_shape

CONTEXT = 1024  # tokens of each sequence before the new one
STEPS = 20


def chunks(number: int, tokens: int) -> list[Chunk]:
    """A new token for each of so many sequences, which lie behind each other in the cache."""
    return [Chunk([17 + i], tokens, 1 + i * (tokens + 1)) for i in range(number)]


def seconds_of(cached: CachedModel, step: list[Chunk]) -> tuple[float, torch.Tensor]:
    """(median seconds of a step, its logits)"""
    taken, logits_SV = [], torch.empty(0)
    for _ in range(3 + STEPS):
        began = time.perf_counter()
        logits_SV = cached.next_logits(step).clone()
        if logits_SV.is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return median(taken[3:]), logits_SV


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Llama-3.1-8B", help="a folder, or a path that names a published size")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 64], help="that go on in one step")
    parser.add_argument("--context", type=int, default=CONTEXT, help="tokens of each sequence before the new one")
    options = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    dtype, shape = compute_dtype(device), read_shape(options.model)
    model = read_model(shape, DeviceWeights(shape, device), device, dtype).requires_grad_(False)
    most = max(options.sequences) * (options.context + 1) + 1
    ways = {"captured": True, "plain": False} if device.type == "cuda" else {"plain": False}
    for number in options.sequences:
        logits = {}
        for name, captured in ways.items():
            cached = CachedModel(model, most * slot_bytes(shape, dtype), most, captured)
            taken, logits[name] = seconds_of(cached, chunks(number, options.context))
            tell(f"decode, {number} sequences, {name}", number / taken, "tokens/s")
        if len(logits) == 2:
            differ = (logits["captured"].float() - logits["plain"].float()).abs().max().item()
            tell(f"decode, {number} sequences: largest difference of the logits", differ, "")


if __name__ == "__main__":
    main()
