"""Bytes every operation of both libraries moves, counted in Triton's interpreter and held against the least possible.

Counts are linear in T as soon as each of the H100's programs has its rows. So a count at two small T gives the one at
T = 8,192, and a third small T must lie on the line.
"""

from argparse import Namespace
from collections.abc import Iterator
from unittest import mock

import triton.language as tl
from liger_kernel.ops import fused_add_rms_norm as liger_add_rms_norm
from liger_kernel.ops import rms_norm as liger_rms_norm

from benchmarks.kernels.adapters import ADAPTERS
from benchmarks.kernels.counter import Count, count_of
from benchmarks.kernels.float8 import CASTS
from benchmarks.kernels.interpreter import patch_once_a_launch
from benchmarks.kernels.operations import OPERATIONS, add_rms_norm_backward, rms_norm_backward
from benchmarks.kernels.pretend import pretended_h100
from benchmarks.kernels.shapes import MODELS, TOKENS, Shape
from benchmarks.kernels.table import show
from benchmarks.kernels.work import Operation
from logtrain_kernels import dropped_linear

NUM_PARTS = dropped_linear.num_parts
FEW = (1, 2, 3)
COUNTED: dict[Operation, tuple[int, int, int]] = {
    CASTS[0]: (132, 133, 134),  # 528 programs, as at all tokens, have a block of 4096: four or more a row
    **dict.fromkeys(ADAPTERS, (64, 128, 192)),  # programs of 64 rows
}
PROGRAMS = {"logtrain": 132, "liger": 264}  # of the norms' backwards: each must have its rows
LEFT_OUT = ADAPTERS[2:]  # the same kernels at another width, which take the interpreter minutes
COLUMNS = {
    "library": 8, "op": 28, "shape": 5, "counted_tokens": 14, "counted_bytes": 13, "bytes_moved": 13,
    "bytes_minimum": 13, "ratio": 6, "bytes_around": 12, "bytes_cached": 12,
}  # fmt: skip


def rsqrt(x: tl.tensor) -> tl.tensor:
    """Stands in for the one of Liger's kernels, which is libdevice's: the interpreter does not have it."""
    return tl.math.rsqrt(x)


def num_parts(_T: int, *others: int) -> int:
    """How many sums the gradient of A is made of where there are all tokens."""
    return NUM_PARTS(TOKENS, *others)


def figures(operation: Operation, shape: Shape, T: int, library: str) -> dict[str, int]:
    """Bytes that a library's operation moves at T tokens, as counted, and the least possible."""
    work = operation(shape, T, "cpu")
    with (
        pretended_h100("cpu"),
        mock.patch.object(liger_rms_norm, "rsqrt", rsqrt),
        mock.patch.object(liger_add_rms_norm, "rsqrt", rsqrt),
        mock.patch.object(dropped_linear, "num_parts", num_parts),
    ):
        count: Count = count_of(getattr(work, library))
    return {
        "bytes_moved": count.moved,
        "bytes_minimum": work.bytes_minimum[library],
        "bytes_around": count.around,
        "bytes_cached": count.cached,
    }


def counted_at(operation: Operation, library: str) -> tuple[int, int, int]:
    """The numbers of tokens at which a library's operation is counted."""
    if operation in (rms_norm_backward, add_rms_norm_backward):
        return PROGRAMS[library], PROGRAMS[library] + 1, PROGRAMS[library] + 2
    return COUNTED.get(operation, FEW)


def rows(models: list[str], libraries: list[str]) -> Iterator[dict[str, object]]:
    """A row of the table for each operation, model and library."""
    for operation in (each for each in OPERATIONS if each not in LEFT_OUT):
        for model in models:
            work = operation(MODELS[model], 1, "meta")
            for library in (name for name in libraries if getattr(work, name)):
                first, second, third = counted_at(operation, library)
                a, b, c = (figures(operation, MODELS[model], T, library) for T in (first, second, third))
                assert all(c[key] - b[key] == b[key] - a[key] for key in a), "not linear in T: cannot be continued"
                full = {key: a[key] + (b[key] - a[key]) * (TOKENS - first) // (second - first) for key in a}
                yield {
                    "library": library,
                    "op": operation.__name__,
                    "shape": model,
                    "counted_tokens": third,
                    "counted_bytes": c["bytes_moved"],
                    **full,
                    "ratio": round(full["bytes_moved"] / full["bytes_minimum"], 4),
                    "note": work.note,
                }


def main(options: Namespace) -> None:
    """Print the table."""
    patch_once_a_launch()
    if not options.json:
        print(f"bf16, T = {TOKENS:,}: continued from counts at up to counted_tokens")
        print("bytes_around: PyTorch's operations, in bytes_moved; bytes_cached: from L2, not in bytes_moved")
    show(rows(options.models or list(MODELS), options.libraries), COLUMNS, options.json)
