"""What a run knows of itself besides its tensors: a checkpoint carries it, and a resumed run goes on from it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class TrainState:
    """Kept up to date by the trainer; equal on every rank."""

    data: str
    """fingerprint of the prepared data"""
    rows_per_step: int
    """packed rows of a step, over all ranks"""
    step: int = 0
    """steps made"""
    tokens: int = 0
    """trained on so far; padding does not count"""
    targets: int = 0
    """predicted so far"""
    skipped: int = 0
    """of the steps, those whose gradients were not finite, so that they updated nothing"""
    best_step: int = 0
    """the step with the lowest loss on the first validation set; 0: none was validated"""
    best_loss: float | None = None
    """on the first validation set, at `best_step`"""
    validations_since_best: int = 0

    def continued_as(self, fresh: "TrainState", checkpoint: Path, data: str) -> "TrainState":
        """The state of a checkpoint, if a run that would start as `fresh` now is the one that it is of.

        `data`: the folder of the training data. Raises ValueError where it would be another run.
        """
        if self.data != fresh.data:
            raise ValueError(f"{data}: has been prepared anew since {checkpoint} was saved; the run would not be one")
        if self.rows_per_step != fresh.rows_per_step:  # documents_per_step is rounded to what the ranks take at once
            raise ValueError(
                f"{checkpoint}: its steps have {self.rows_per_step} rows, here they would have {fresh.rows_per_step}; "
                f"go on with the same ranks and loader.rows_per_batch"
            )
        return self
