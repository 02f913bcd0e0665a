"""How long operations take: on a GPU beside Liger's and PyTorch's, eager and compiled. Without one, our CPU references
beside eager PyTorch, which says nothing about a GPU.

GB/s are those of the least possible bytes, so moving too many shows as a lower figure.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator

import torch
import torch._functorch.config as compile_config
import triton
from torch.utils.benchmark import Timer

from benchmarks.kernels.attention import ATTENTION
from benchmarks.kernels.head import head_and_loss
from benchmarks.kernels.operations import OPERATIONS
from benchmarks.kernels.shapes import MODELS, TOKENS, Shape
from benchmarks.kernels.table import show
from benchmarks.kernels.work import LIBRARIES, Call, Work, by_autograd

SMALL, SMALL_TOKENS = Shape(D=256, F=704, N=8, K=2, H=32, V=8192), 256
COLUMNS = {"library": 22, "op": 29, "shape": 5, "microseconds": 12, "gb_per_s": 9, "tflop_per_s": 11}


def contenders(work: Work, on_gpu: bool) -> tuple[str, ...]:
    """The names of what can be timed of an operation: on a GPU our kernel, on a CPU its reference, with others beside
    it.
    """
    if on_gpu:
        return (*(name for name in LIBRARIES if getattr(work, name)), "eager", "compile", *work.others)
    return ("reference", "eager", *work.others) if work.reference else ()


def call_of(contender: str, work: Work) -> Call:
    """What a clock should run for one of the `contenders`."""
    if contender in LIBRARIES:
        return getattr(work, contender)
    forwards = {"eager": work.eager, "compile": torch.compile(work.eager, dynamic=False), **work.others}
    if work.reference:
        forwards["reference"] = work.reference
    return by_autograd(forwards[contender], work.leaves, work.gradients)


def microseconds(call: Call, on_gpu: bool) -> float:
    """The median time of a call."""
    if on_gpu:
        milliseconds = triton.testing.do_bench(call, return_mode="median")
        assert isinstance(milliseconds, float)
        return 1000 * milliseconds
    return 1e6 * Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=0.05).median


def rows(shapes: dict[str, Shape], tokens: int, device: str) -> Iterator[dict[str, object]]:
    """A row of the table for each operation, shape and contender."""
    on_gpu = device == "cuda"
    for operation in (*OPERATIONS, *ATTENTION, head_and_loss):
        for name, shape in shapes.items():
            for contender in contenders(operation(shape, 1, device), on_gpu):
                work = operation(shape, tokens, device)  # anew: some overwrite it
                with compile_config.patch(donated_buffer=False):  # a compiled backward is run again and again
                    elapsed = microseconds(call_of(contender, work), on_gpu)
                row: dict[str, object] = {
                    "library": contender,
                    "op": operation.__name__,
                    "shape": name,
                    "microseconds": elapsed,
                }
                if work.bytes_minimum:
                    row["gb_per_s"] = work.bytes_minimum["logtrain"] / elapsed / 1e3
                if work.flops:
                    row["tflop_per_s"] = work.flops / elapsed / 1e6
                yield row


def main(options: Namespace) -> None:
    """Print the table."""
    shapes, tokens, device = {"small": SMALL}, SMALL_TOKENS, "cpu"
    where = "no GPU here: CPU references beside eager PyTorch, at a small shape"
    if torch.cuda.is_available():
        shapes, tokens, device = {name: MODELS[name] for name in options.models}, TOKENS, "cuda"
        where = torch.cuda.get_device_name()
    print(f"{where}; bf16, T = {tokens:,}, medians", file=sys.stderr if options.json else sys.stdout)
    show(rows(shapes, tokens, device), COLUMNS, options.json)
