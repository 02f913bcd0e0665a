"""Packed rows as they travel from the loader to the model: flat tokens, without a batch axis.

Shapes in names: T tokens of all rows, end to end; K outcomes of a teacher's distribution.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100  # the label of a token that has no target


class Batch(NamedTuple):
    """One micro-batch of one rank."""

    tokens_T: Tensor
    """Token ids, int64."""
    labels_T: Tensor | None
    """The next token of the same document, int64; IGNORE where there is none, or where it is context. None asks the
    model for logits instead of a loss.
    """
    positions_T: Tensor
    """Position of each token in its sequence (a document, or a whole row), int32, counted from 0."""
    cu_seqlens: Tensor
    """Where each sequence starts, then T, int32."""
    max_seqlen: int
    """An upper bound of the tokens in a sequence."""
    seeds_T: Tensor | None = None
    """64 random bits of each token for dropout, int64, which no other token of the run has."""
    pairs_P3: Tensor | None = None
    """Of each pair of answers the sequences of the chosen and of the rejected one, and its number in the data, int64;
    of a batch without pairs one of -1.
    """
    reference_P2: Tensor | None = None
    """Log-probabilities of both answers of each pair by the reference model, fp32, in nats; 0 where unknown."""
    teacher_TK: Tensor | None = None
    """Of each token with a label the ids that a teacher found the most likely to come next, int32."""
    teacher_log_TK: Tensor | None = None
    """Their log-probabilities by the teacher, float16, in nats; -inf where there is no label."""

    def to(self, device: torch.device) -> "Batch":
        """A copy of the batch on a device; from pinned memory the copying does not wait."""
        return self.map(lambda x: x.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """A copy of the batch in page-locked host memory, from which a GPU copies by itself."""
        return self.map(lambda x: x.pin_memory())

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with `change` applied to every tensor that it has."""
        changed = {name: change(x) for name, x in self._asdict().items() if isinstance(x, Tensor)}
        return self._replace(**changed)
