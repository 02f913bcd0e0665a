"""Packed rows as they travel from the loader to the model: flat tokens, without a batch axis.

Shapes in names: T tokens of all rows, end to end.
"""

from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100  # the label of a token that has no target


class Batch(NamedTuple):
    """One micro-batch of one rank."""

    tokens_T: Tensor
    """int64"""
    labels_T: Tensor | None
    """int64: the next token of the same document, IGNORE where there is none or it is context; None: no labels"""
    positions_T: Tensor
    """int32: from 0 in every sequence (a document, or a whole row)"""
    cu_seqlens: Tensor
    """int32: where each sequence starts, then T, which may be repeated so that the length is constant"""
    max_seqlen: int
    """at least the longest sequence"""
    seeds_T: Tensor | None = None
    """int64: 64 random bits that no other token of the run has, for dropout"""

    def to(self, device: torch.device) -> "Batch":
        """The same on a device; from pinned memory the copies do not wait."""
        return Batch(*(x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in self))

    def pin(self) -> "Batch":
        """The same in page-locked host memory, from which a GPU copies by itself."""
        return Batch(*(x.pin_memory() if isinstance(x, Tensor) else x for x in self))
