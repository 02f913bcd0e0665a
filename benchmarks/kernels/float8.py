"""The casts to float8 of a block's operands: of the widest one, dy of gate and up, by rows and as a whole.

Liger-Kernel has none. Tensorwise the matrix has to be read twice, as its scale comes before its first element.
"""

from benchmarks.kernels.shapes import Shape
from benchmarks.kernels.work import Operation, Work, normal, size
from logtrain_kernels.float8_cast import cast_reference, float8_cast_op


def cast(rowwise: bool) -> Operation:
    """The cast of [T, 2F], with a scale for each row or one for all."""

    def work(s: Shape, T: int, device: str) -> Work:
        x = normal(T, 2 * s.F, device=device)
        scales = 4 * T if rowwise else 4
        return Work(
            logtrain=lambda: float8_cast_op(x, None, rowwise),
            reference=lambda: cast_reference(x, None, "rowwise" if rowwise else "tensorwise"),
            eager=lambda: cast_reference(x, None, "rowwise" if rowwise else "tensorwise"),
            bytes_minimum={"logtrain": (1 if rowwise else 2) * size(x) + x.numel() + scales},
        )

    work.__name__ = f"float8_cast_{'rows' if rowwise else 'whole'}"
    return work


CASTS = (cast(True), cast(False))
