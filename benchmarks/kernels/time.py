"""How long operations take: on a GPU beside Liger's and PyTorch's, eager and compiled. Without one, our CPU references
beside eager PyTorch, which says nothing about a GPU.

GB/s are those of the least possible bytes, so moving too many shows as a lower figure. What a call overwrites is put
back before the next one, outside the clock, for a kernel is faster on its own garbage (zeros, or numbers that overflow)
than on data. A function that cannot be compiled as a whole fails, rather than be timed uncompiled under that name.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
import torch._functorch.config as compile_config
from torch import Tensor

from benchmarks.kernels.attention import ATTENTION
from benchmarks.kernels.head import head_and_loss
from benchmarks.kernels.operations import OPERATIONS
from benchmarks.kernels.shapes import MODELS, TOKENS, Shape
from benchmarks.kernels.table import show
from benchmarks.kernels.work import LIBRARIES, Call, Work, by_autograd

SMALL, SMALL_TOKENS = Shape(D=256, F=704, N=8, K=2, H=32, V=8192), 256
REPEATS = 30  # calls on the clock, on a CPU fewer
L2_BYTES = 256 * 2**20  # written between them, so that nothing stays in the L2 cache
COLUMNS = {"library": 22, "op": 29, "shape": 5, "microseconds": 12, "gb_per_s": 9, "tflop_per_s": 11}


def contenders(work: Work, on_gpu: bool) -> tuple[str, ...]:
    """The names of what can be timed of an operation: on a GPU our kernel, on a CPU its reference beside PyTorch."""
    if on_gpu:
        return (*(name for name in LIBRARIES if getattr(work, name)), "eager", "compile", *work.others)
    return ("reference", "eager", *work.others) if work.reference else ()


def call_of(contender: str, work: Work) -> Call:
    """What a clock should run for one of the `contenders`."""
    if contender in LIBRARIES:
        return getattr(work, contender)
    torch._dynamo.reset()  # its count of recompilations is over all calls, and at its limit it runs uncompiled
    compiled = torch.compile(work.eager, dynamic=False, fullgraph=True)
    forwards = {"eager": work.eager, "compile": compiled, **work.others}
    if work.reference:
        forwards["reference"] = work.reference
    return by_autograd(forwards[contender], work.leaves, work.gradients)


def microseconds(call: Call, overwritten: Sequence[Tensor], on_gpu: bool) -> float:
    """The median time of a call; before each, the tensors that calls overwrite get back what they hold now."""
    kept = [(x.detach(), x.detach().clone()) for x in overwritten]
    flushed = torch.empty(L2_BYTES if on_gpu else 0, dtype=torch.int8, device="cuda" if on_gpu else "cpu")
    taken = []
    for _ in range(3 + (REPEATS if on_gpu else 3)):  # three warm up
        for x, before in kept:
            x.copy_(before)
        flushed.zero_()
        taken.append(timed(call, on_gpu))
    if on_gpu:
        torch.cuda.synchronize()
    return 1e6 * median(seconds() for seconds in taken[3:])


def timed(call: Call, on_gpu: bool) -> Callable[[], float]:
    """Run a call; -> its seconds, to be asked for once the GPU has come to its end."""
    if not on_gpu:
        began = time.perf_counter()
        call()
        taken = time.perf_counter() - began
        return lambda: taken
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    return lambda: begin.elapsed_time(end) / 1e3


def rows(shapes: dict[str, Shape], tokens: int, device: str) -> Iterator[dict[str, object]]:
    """A row of the table for each operation, shape and contender."""
    on_gpu = device == "cuda"
    for operation in (*OPERATIONS, *ATTENTION, head_and_loss):
        for name, shape in shapes.items():
            for contender in contenders(operation(shape, 1, device), on_gpu):
                work = operation(shape, tokens, device)  # anew: some overwrite it
                with compile_config.patch(donated_buffer=False):  # a compiled backward is run again and again
                    overwritten = work.overwritten if contender in LIBRARIES else ()
                    elapsed = microseconds(call_of(contender, work), overwritten, on_gpu)
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
        shapes, tokens, device = {name: MODELS[name] for name in options.models or ["8B"]}, TOKENS, "cuda"
        where = torch.cuda.get_device_name()
    print(f"{where}; bf16, T = {tokens:,}, medians", file=sys.stderr if options.json else sys.stdout)
    show(rows(shapes, tokens, device), COLUMNS, options.json)
