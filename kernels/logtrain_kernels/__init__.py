"""The operations of a Llama training step: for each, the mathematics, a reference in plain PyTorch, the Triton
kernels, what they cost, and the function the model calls.

The package needs torch and triton only and knows nothing of logtrain. Shapes in names: T tokens of the packed rows, D
model width, F feed-forward width, N query heads, K key-value heads, H head width, V vocabulary.
"""

from logtrain_kernels.adapted_linear import (
    ADAPTED_LINEAR_KEPT,
    AdapterSpan,
    adapted_linear,
    adapter_outputs_backward_cost,
    adapter_outputs_cost,
)
from logtrain_kernels.attention import (
    ATTENTION_KEPT,
    CacheSlots,
    attention,
    attention_cost,
    attention_reference,
    cached_attention,
    cached_attention_reference,
    use_attention,
    use_best_attention,
)
from logtrain_kernels.cost import Cost
from logtrain_kernels.device import interpreted, pretended_gpu, settle_vector_functions
from logtrain_kernels.dropout import dropout_steps
from logtrain_kernels.dropped_linear import DROPPED_LINEAR_KEPT, dropped_linear_backward_cost, dropped_linear_cost
from logtrain_kernels.float8 import Float8, Scaling, float8_amax, float8_round, float8_scale
from logtrain_kernels.float8_block import float8_feed_forward, float8_norm_rope
from logtrain_kernels.float8_cast import float8_cast, float8_weight
from logtrain_kernels.float8_linear import ONLY, Float8Recipe, Pass, float8_linear
from logtrain_kernels.float8_norm import rms_norm_largest_cost, rms_norm_pair_cost
from logtrain_kernels.float8_pair import FLOAT8_KEPT, float8_largest_cost, float8_pair_cost, float8_transposed_cost
from logtrain_kernels.float8_rope import rope_backward_largest_cost, rope_backward_pair_cost
from logtrain_kernels.float8_rows import float8_rows_cost
from logtrain_kernels.float8_swiglu import (
    FLOAT8_SWIGLU_KEPT,
    swiglu_backward_largest_cost,
    swiglu_backward_pair_cost,
    swiglu_largest_cost,
    swiglu_pair_cost,
)
from logtrain_kernels.linear_cross_entropy import (
    IGNORE,
    linear_cross_entropy,
    linear_cross_entropy_reference,
    softmax_gradient_cost,
    token_losses,
)
from logtrain_kernels.rms_norm import (
    add_rms_norm,
    add_rms_norm_cost,
    add_rms_norm_reference,
    rms_norm,
    rms_norm_backward_cost,
    rms_norm_cost,
    rms_norm_reference,
)
from logtrain_kernels.rope import (
    ROPE_KEPT,
    Llama3Scaling,
    rope,
    rope_backward_cost,
    rope_cost,
    rope_reference,
    rope_tables,
)
from logtrain_kernels.swiglu import swiglu, swiglu_backward_cost, swiglu_cost, swiglu_reference

COSTS = {
    "adapter_outputs": adapter_outputs_cost,
    "adapter_outputs_backward": adapter_outputs_backward_cost,
    "add_rms_norm": add_rms_norm_cost,
    "dropped_linear": dropped_linear_cost,
    "dropped_linear_backward": dropped_linear_backward_cost,
    "float8_largest": float8_largest_cost,
    "float8_pair": float8_pair_cost,
    "float8_rows": float8_rows_cost,
    "float8_transposed": float8_transposed_cost,
    "rms_norm": rms_norm_cost,
    "rms_norm_backward": rms_norm_backward_cost,
    "rms_norm_largest": rms_norm_largest_cost,
    "rms_norm_pair": rms_norm_pair_cost,
    "rope_": rope_cost,
    "rope_backward": rope_backward_cost,
    "rope_backward_largest": rope_backward_largest_cost,
    "rope_backward_pair": rope_backward_pair_cost,
    "softmax_gradient_": softmax_gradient_cost,
    "swiglu": swiglu_cost,
    "swiglu_backward_": swiglu_backward_cost,
    "swiglu_backward_largest": swiglu_backward_largest_cost,
    "swiglu_backward_pair": swiglu_backward_pair_cost,
    "swiglu_largest": swiglu_largest_cost,
    "swiglu_pair": swiglu_pair_cost,
}
"""By the name of each operation in `torch.ops.logtrain`, its cost as a function of its arguments."""

settle_vector_functions()

KEPT_BY_RECOMPUTATION = frozenset(
    (*ADAPTED_LINEAR_KEPT, *ATTENTION_KEPT, *DROPPED_LINEAR_KEPT, *FLOAT8_KEPT, *FLOAT8_SWIGLU_KEPT, *ROPE_KEPT)
)
"""Operations whose results selective recomputation keeps, by their full names; others are done again."""

__all__ = [
    "COSTS",
    "IGNORE",
    "KEPT_BY_RECOMPUTATION",
    "ONLY",
    "AdapterSpan",
    "CacheSlots",
    "Cost",
    "Float8",
    "Float8Recipe",
    "Llama3Scaling",
    "Pass",
    "Scaling",
    "adapted_linear",
    "add_rms_norm",
    "add_rms_norm_reference",
    "attention",
    "attention_cost",
    "attention_reference",
    "cached_attention",
    "cached_attention_reference",
    "dropout_steps",
    "float8_amax",
    "float8_cast",
    "float8_feed_forward",
    "float8_linear",
    "float8_norm_rope",
    "float8_round",
    "float8_scale",
    "float8_weight",
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
    "use_best_attention",
]
