"""Activation recomputation: what of a block is kept for its backward, and what is computed again."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from logtrain.model.config import Recompute
from logtrain_kernels import KEPT_BY_RECOMPUTATION

PRODUCTS = (  # the matrix products of a block
    "mm",
    "addmm_",  # adds to a kept product: a second time would add twice
    "addmm",  # what a compiler makes of it
    "_scaled_mm",  # of float8
)
KEPT = KEPT_BY_RECOMPUTATION | {f"aten.{name}.default" for name in PRODUCTS}


def keep_products():
    """Contexts of selective recomputation: matrix products and attention are kept, the elementwise work between them is
    done again.
    """
    return create_selective_checkpoint_contexts(
        lambda _, op, *args, **kwargs: (
            CheckpointPolicy.MUST_SAVE if str(op) in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
        ),
        allow_cache_entry_mutation=True,
    )


def recomputed(how: Recompute, compute: Callable, *inputs):
    """Returns `compute(*inputs)`; the backward computes its activations again as far as `how` says."""
    if how == "none" or not torch.is_grad_enabled():
        return compute(*inputs)
    if how == "selective":
        return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=keep_products)
    return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)
