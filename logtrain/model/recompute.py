"""Activation recomputation: what of a block is kept for its backward, and what is computed again."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

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
    done again. What works in place, as the rotation of queries and keys does, has changed a kept product for good and
    is not done again; on a tensor that is itself made again, it is.
    """
    kept: set[StorageWeakRef] = set()

    def policy(context: SelectiveCheckpointContext, op: torch._ops.OpOverload, *args, **_) -> CheckpointPolicy:
        written = [x for x, declared in zip(args, op._schema.arguments, strict=False) if declared.is_write]
        if str(op) not in KEPT or not {StorageWeakRef(x.untyped_storage()) for x in written} <= kept:
            return CheckpointPolicy.PREFER_RECOMPUTE
        results = (x for x in tree_leaves(context.op_output) if isinstance(x, Tensor))
        kept.update(StorageWeakRef(x.untyped_storage()) for x in results)
        return CheckpointPolicy.MUST_SAVE

    return create_selective_checkpoint_contexts(policy, allow_cache_entry_mutation=True)


def recomputed(how: Recompute, compute: Callable, *inputs):
    """Returns `compute(*inputs)`; the backward computes its activations again as far as `how` says."""
    if how == "none" or not torch.is_grad_enabled():
        return compute(*inputs)
    if how == "selective":
        return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=keep_products)
    return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)
