"""What a user may set of the loader. Nothing here imports torch, so that `--help` answers at once."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    seq_len: int = 8192
    """Tokens in a packed row; the data must have been prepared for it."""
    rows_per_step: int = 128
    """Packed rows an optimizer step takes, over all ranks and micro-batches."""
    documents_per_step: int = 0
    """Instead of rows_per_step: so many documents (conversations) a step on average. 0: rows_per_step counts."""
    rows_per_batch: int = 1
    """Packed rows a rank puts through the model at once (a micro-batch)."""
    attention: Literal["document", "row"] = "document"
    """document: a token sees only its own document. row: one causal mask over the whole row, as in trainers that pack
    without a mask; the first token of a document is no target in either.
    """

    def __post_init__(self):
        for name in ("seq_len", "rows_per_step", "rows_per_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"loader.{name} = {getattr(self, name)} must be at least 1")
        if self.documents_per_step < 0:
            raise ValueError(f"loader.documents_per_step = {self.documents_per_step} must not be negative")

    def accumulation(self, world_size: int) -> int:
        """Micro-batches a rank runs in a step."""
        at_once = world_size * self.rows_per_batch
        if self.rows_per_step % at_once:
            nearest = -(-self.rows_per_step // at_once) * at_once
            raise ValueError(
                f"loader.rows_per_step = {self.rows_per_step} is not a multiple of {at_once} ({world_size} ranks x "
                f"loader.rows_per_batch = {self.rows_per_batch}); set rows_per_step to {nearest}"
            )
        return self.rows_per_step // at_once

    def rows_for_documents(self, documents_per_row: float, world_size: int) -> int:
        """Rows of a step that hold `documents_per_step` on average, rounded to what the ranks take at once."""
        at_once = world_size * self.rows_per_batch
        return max(1, round(self.documents_per_step / documents_per_row / at_once)) * at_once
