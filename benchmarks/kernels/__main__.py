"""Evidence about the kernels, beside Liger-Kernel's (extra "bench"). Only --time wants a GPU:

    python -m benchmarks.kernels --compile    machine code: registers, spills, shared memory, occupancy, accesses, loops
    python -m benchmarks.kernels --traffic    bytes loaded and stored, against the least possible
    python -m benchmarks.kernels --time       microseconds, GB/s, TFLOP/s, beside PyTorch eager and compiled as well

The first takes minutes, the second two, the third two for each size of a Llama.
"""

import argparse
import importlib
import os

from benchmarks.kernels.shapes import MODELS


def main() -> None:
    """Show the evidence that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    evidence = parser.add_mutually_exclusive_group(required=True)
    for name in ("compile", "traffic", "time"):
        evidence.add_argument(f"--{name}", action="store_const", const=name, dest="evidence")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="sizes of which Llamas (all; for --time, 8B)")
    parser.add_argument(
        "--libraries", nargs="+", choices=["logtrain", "liger"], default=["logtrain", "liger"], help="whose"
    )
    parser.add_argument("--arch", nargs="+", type=int, choices=[90, 80, 100], default=[90, 80, 100], help="sm_90: H100")
    parser.add_argument("--json", action="store_true", help="one object a line instead of the table")
    options = parser.parse_args()
    if options.evidence == "traffic":
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which nothing has done yet
    importlib.import_module(f"benchmarks.kernels.{options.evidence}").main(options)


if __name__ == "__main__":
    main()
