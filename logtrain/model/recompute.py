"""Activation recomputation: what of a block is kept for its backward, and what is computed again."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from logtrain.model.config import Recompute

KEPT = {  # the matrix products, and attention as CPUs and GPUs run it
    "aten.mm.default",
    "aten.addmm.default",  # what a compiler makes of the next
    "aten.addmm_.default",  # adds to a kept product: a second time would add twice
    "logtrain.dropped_linear.default",
    "logtrain.adapter_outputs.default",
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
    "torch_attn._varlen_attn.default",
    "flash_attn._flash_attn_varlen_forward.default",
    "logtrain.rope_.default",  # works in place of a kept product: a second time would turn it twice
}


def keep_products():
    """Selective recomputation: matrix products and attention are kept, the elementwise work between them is done
    again.
    """
    return create_selective_checkpoint_contexts(
        lambda _, op, *args, **kwargs: (
            CheckpointPolicy.MUST_SAVE if str(op) in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
        ),
        allow_cache_entry_mutation=True,
    )


def recomputed(how: Recompute, compute: Callable, *inputs):
    """`compute(*inputs)`, whose activations the backward computes again as far as `how` says."""
    if how == "none" or not torch.is_grad_enabled():
        return compute(*inputs)
    contexts = {"context_fn": keep_products} if how == "selective" else {}
    return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False, **contexts)
