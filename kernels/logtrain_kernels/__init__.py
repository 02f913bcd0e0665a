"""The operations of a Llama training step: for each, the mathematics, a reference in plain PyTorch, the Triton
kernels, and the function the model calls.

Needs torch and triton only; knows nothing of logtrain. Shapes in names: T tokens of the packed rows, D model width, F
feed-forward width, N query heads, K key-value heads, H head width, V vocabulary.
"""

from logtrain_kernels.adapted_linear import adapted_linear
from logtrain_kernels.attention import (
    AttentionBackend,
    CacheSlots,
    attention,
    attention_reference,
    cached_attention,
    cached_attention_reference,
    use_attention,
)
from logtrain_kernels.device import interpreted, pretended_gpu
from logtrain_kernels.dropout import dropout_steps
from logtrain_kernels.linear_cross_entropy import (
    IGNORE,
    linear_cross_entropy,
    linear_cross_entropy_reference,
    token_losses,
)
from logtrain_kernels.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from logtrain_kernels.rope import Llama3Scaling, rope, rope_reference, rope_tables
from logtrain_kernels.swiglu import swiglu, swiglu_reference

__all__ = [
    "IGNORE",
    "AttentionBackend",
    "CacheSlots",
    "Llama3Scaling",
    "adapted_linear",
    "add_rms_norm",
    "add_rms_norm_reference",
    "attention",
    "attention_reference",
    "cached_attention",
    "cached_attention_reference",
    "dropout_steps",
    "interpreted",
    "linear_cross_entropy",
    "linear_cross_entropy_reference",
    "pretended_gpu",
    "rms_norm",
    "rms_norm_reference",
    "rope",
    "rope_reference",
    "rope_tables",
    "swiglu",
    "swiglu_reference",
    "token_losses",
    "use_attention",
]
