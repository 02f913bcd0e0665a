"""Packed rows as they travel from the loader to the model: flat tokens, without a batch axis.

Shapes in names: T tokens of all rows, end to end.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100  # the label of a token that has no target


class Batch(NamedTuple):
    """One micro-batch of one rank."""

    tokens_T: Tensor
    """int64"""
    labels_T: Tensor | None
    """int64: the next token of the same document, IGNORE where there is none or it is context; None for logits"""
    positions_T: Tensor
    """int32: from 0 in every sequence (a document, or a whole row)"""
    cu_seqlens: Tensor
    """int32: where each sequence starts, then T, which may be repeated so that the length is constant"""
    max_seqlen: int
    """at least the longest sequence"""
    seeds_T: Tensor | None = None
    """int64: 64 random bits that no other token of the run has, for dropout"""

    def to(self, device: torch.device) -> "Batch":
        """A copy of the batch on a device; from pinned memory the copying does not wait."""
        return self.map(lambda x: x.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """A copy of the batch in page-locked host memory, from which a GPU copies by itself."""
        return self.map(lambda x: x.pin_memory())

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with every tensor that it has changed alike."""
        labels_T, seeds_T = (None if x is None else change(x) for x in (self.labels_T, self.seeds_T))
        tokens_T, positions_T, cu_seqlens = map(change, (self.tokens_T, self.positions_T, self.cu_seqlens))
        return Batch(tokens_T, labels_T, positions_T, cu_seqlens, self.max_seqlen, seeds_T)
