"""The state of a run beside its tensors. A checkpoint holds it, and a resumed run goes on from it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class TrainState:
    """The counts of a run, which the trainer keeps up to date; equal on every rank but for what is said."""

    data: str
    """Fingerprint of the prepared data."""
    rows_per_step: int
    """Packed rows of a step, over all ranks."""
    step: int = 0
    """Steps that have been made."""
    tokens: int = 0
    """Tokens that have been trained on; padding does not count."""
    targets: int = 0
    """Targets that have been trained on."""
    skipped: int = 0
    """Steps that updated nothing, because their gradients were not finite."""
    best_step: int = 0
    """Step with the lowest loss on the first validation set; 0 where none was validated."""
    best_loss: float | None = None
    """Loss on the first validation set at `best_step`, in nats per target."""
    validations_since_best: int = 0
    """Validations in a row without a lower loss."""
    records_crc32: int = 0
    """Checksum of the records that rank 0 has made; 0 on the other ranks, which make none."""

    def continued_as(self, fresh: "TrainState", checkpoint: Path, data: str) -> "TrainState":
        """This state of a checkpoint, for a run that would start as `fresh` now.

        `data`: the folder of the training data. Raises ValueError where the run has other data, or other rows in a
        step, than the one that saved the checkpoint.
        """
        if self.data != fresh.data:
            raise ValueError(
                f"{data}: has been prepared anew since {checkpoint} was saved; restore it, or start a new run"
            )
        if self.rows_per_step != fresh.rows_per_step:  # documents_per_step is rounded to what the ranks take at once
            raise ValueError(
                f"{checkpoint}: its steps have {self.rows_per_step} rows, here they would have {fresh.rows_per_step}; "
                f"go on with the same ranks and loader.rows_per_batch"
            )
        return self
