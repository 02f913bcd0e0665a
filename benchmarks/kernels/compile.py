"""Every kernel and launch of both libraries as machine code: registers, spills, occupancy, width of accesses."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict

from benchmarks.kernels.binary import compiled
from benchmarks.kernels.operations import OPERATIONS
from benchmarks.kernels.record import launches_of
from benchmarks.kernels.shapes import MODELS, TOKENS
from benchmarks.kernels.table import show

ARCHITECTURES = (90, 80, 100)  # H100 is what counts; A100 and B200 to know
COLUMNS = {
    "library": 8, "op": 28, "kernel": 35, "shape": 5, "arch": 6, "num_warps": 9, "registers": 9, "spill_bytes": 11,
    "shared_bytes": 12, "occupancy": 9, "accesses_16": 11, "accesses_narrow": 15,
    "offsets_64": 10, "programs": 8, "loop": 6, "loop_logic": 10,
}  # fmt: skip


def rows(models: list[str], libraries: list[str], architectures: list[int]) -> Iterator[dict[str, object]]:
    """A row of the table for each operation, model, library, launch and architecture."""
    for operation in OPERATIONS:
        for model in models:
            work = operation(MODELS[model], TOKENS, "meta")
            for library in (name for name in libraries if getattr(work, name)):
                for launch in launches_of(getattr(work, library)):
                    for arch in architectures:
                        yield {
                            "library": library,
                            "op": operation.__name__,
                            "kernel": launch.kernel.__name__,
                            "shape": model,
                            "arch": f"sm_{arch}",
                            **asdict(compiled(launch, arch)),
                        }


def main(options: Namespace) -> None:
    """Print the table."""
    if not options.json:
        print(f"bf16, T = {TOKENS:,}; occupancy: of 64 warps; accesses: to global memory, of 16 bytes a thread or less")
    show(rows(options.models or list(MODELS), options.libraries, options.arch), COLUMNS, options.json)
