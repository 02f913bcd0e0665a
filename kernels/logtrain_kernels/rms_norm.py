"""Root-mean-square layer normalisation (Zhang & Sennrich 2019, arXiv:1910.07467), alone and with the residual
addition before it.

y = x / sqrt(mean(x^2) + eps) * weight          mean over the last axis, computed in fp32
"""

from torch import Tensor


def rms_norm_reference(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    x32_TD = x_TD.float()
    scale_T1 = (x32_TD.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (x32_TD * scale_T1 * weight_D.float()).to(x_TD.dtype)


def add_rms_norm_reference(
    x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    residual_TD = x_TD if residual_TD is None else residual_TD + x_TD
    return residual_TD, rms_norm_reference(residual_TD, weight_D, eps)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Normalise each row of x. [T, D] and [D], any float dtype -> [T, D] in x's dtype."""
    return rms_norm_reference(x_TD, weight_D, eps)


def add_rms_norm(x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add a sublayer's output x to the residual stream and normalise the sum: -> (new residual, its norm), both [T,
    D] in x's dtype.

    `residual_TD = None` starts the stream: x becomes the residual.
    """
    return add_rms_norm_reference(x_TD, residual_TD, weight_D, eps)
