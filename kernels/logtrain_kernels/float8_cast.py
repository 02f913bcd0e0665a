"""The cast of a matrix to float8 by either kind of scales: of rows (float8_rows.py), or of it all (float8_pair.py)."""

import torch
from torch import Tensor

from logtrain_kernels.float8 import Float8, Scaling, float8_amax
from logtrain_kernels.float8_pair import Float8Pair, float8_pair, float8_pair_op
from logtrain_kernels.float8_rows import float8_rows_op


def float8_cast(x_TD: Tensor, scaling: Scaling, factor_D: Tensor | None = None) -> Float8:
    """A matrix, fp32 or bf16 [T, D], in e4m3, scaled by its own largest absolute value, or row by row; rowwise with its
    columns multiplied by `factor_D`, fp32, before.
    """
    if scaling == "rowwise":
        return Float8(*float8_rows_op(x_TD, factor_D))
    assert factor_D is None, "a factor by column is for rows"
    return float8_pair(x_TD, transposed=False).straight


def float8_weight(weight_OD: Tensor, scaling: Scaling, amax: Tensor | None = None) -> Float8:
    """What `float8_cast` gives. `amax`: tensorwise, the largest absolute value where it is known, fp32 []. The look at
    it is PyTorch's own, and none that recomputation keeps: a weight may be cast in the first of two passes alone.
    """
    if scaling == "rowwise":
        return float8_cast(weight_OD, "rowwise")
    amax = float8_amax(weight_OD, "tensorwise") if amax is None else amax
    return Float8Pair(*float8_pair_op(weight_OD, amax.view(torch.int32), True, False)).straight
