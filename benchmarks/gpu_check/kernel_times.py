"""The kernels' times at the size of Llama-3.1-8B, beside Liger-Kernel's, PyTorch's and its compiler's, told as figures;
`python -m benchmarks.kernels --time` shows the same as a table.
"""

import torch

from benchmarks.gpu_check.figures import tell
from benchmarks.kernels.shapes import MODELS, TOKENS
from benchmarks.kernels.time import SMALL, SMALL_TOKENS, rows


def main() -> None:
    on_gpu = torch.cuda.is_available()
    shapes, tokens = ({"8B": MODELS["8B"]}, TOKENS) if on_gpu else ({"small": SMALL}, SMALL_TOKENS)
    for row in rows(shapes, tokens, "cuda" if on_gpu else "cpu"):
        microseconds = row["microseconds"]
        assert isinstance(microseconds, float)
        tell(f"{row['op']}: {row['library']}", microseconds, "us")


if __name__ == "__main__":
    main()
