"""SwiGLU (Shazeer 2020, arXiv:2002.05202): y = silu(gate) * up, where silu(z) = z / (1 + e^-z)."""

import torch.nn.functional as F
from torch import Tensor


def swiglu_reference(gate_up_T2F: Tensor) -> Tensor:
    gate_TF, up_TF = gate_up_T2F.float().chunk(2, dim=-1)
    return (F.silu(gate_TF) * up_TF).to(gate_up_T2F.dtype)


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """The gated activation of a fused projection: [T, 2F] (gate first, then up), any float dtype -> [T, F] in the
    same dtype, fp32 inside.
    """
    return swiglu_reference(gate_up_T2F)
