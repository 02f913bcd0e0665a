"""The state of a run beside its tensors. A checkpoint holds it, and a resumed run goes on from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from logtrain.core.untrusted import ALWAYS
from logtrain.data.epoch import EpochSize
from logtrain.data.loader import Step
from logtrain.data.shards import Split


@dataclass
class Counts:
    """What a run has trained on so far, of one source."""

    tokens: int = 0
    """Tokens, without padding."""
    targets: int = 0
    """Tokens that were predicted."""


@dataclass
class RowLosses:
    """The losses of a validation set row by row (with loader.rows_per_batch above 1, by as many), in one order."""

    losses: list[float]
    """Loss summed over the targets of each, in nats."""
    targets: list[int]
    """Targets of each."""


@dataclass
class ShareChange:
    """A decision on the share of replay."""

    step: int
    """The first step (0-based) that has the share."""
    share: float
    """Of the tokens of a step."""
    rise: float
    """The rise of the general loss by which it was decided, as a share of the loss before the first step."""


@dataclass
class TrainState:
    """The counts of a run, which the trainer keeps up to date; equal on every rank but for what is said. A checkpoint
    of an older version has fewer: what is missing is what it is by default.
    """

    data: str
    """Fingerprint of the prepared data."""
    rows_per_step: int
    """Packed rows of a step, over all ranks."""
    step: int = field(default=0, metadata=ALWAYS)
    """Steps that have been made."""
    tokens: int = field(default=0, metadata=ALWAYS)
    """Tokens that have been trained on; padding does not count."""
    targets: int = field(default=0, metadata=ALWAYS)
    """Targets that have been trained on."""
    skipped: int = 0
    """Steps that updated nothing, because their gradients were not finite."""
    best_step: int = field(default=0, metadata=ALWAYS)
    """Step with the lowest loss on the first validation set; 0 where none was validated."""
    best_loss: float | None = field(default=None, metadata=ALWAYS)
    """Loss on the first validation set at `best_step`, in nats per target."""
    best_set: str = ""
    """Fingerprint of the data of the first validation set, by which the best step was found."""
    validations_since_best: int = field(default=0, metadata=ALWAYS)
    """Validations in a row without a lower loss."""
    records_crc32: int = 0
    """Checksum of the records that rank 0 has made; 0 on the other ranks, which make none."""
    validation_due: bool = False
    """Whether a validation at `step` was given up, because a stop was asked for; it is made first on resuming."""
    start_losses: dict[str, float] = field(default_factory=dict)
    """Loss on each validation set before the first step, by what `set_key` gives."""
    sizes: dict[str, EpochSize] = field(default_factory=dict)
    """Of the first epoch of each source, so that a resumed run need not pack it again."""
    sources: dict[str, Counts] = field(default_factory=dict)
    """What was trained on of each source, by its name, where there are several."""
    start_rows: dict[str, RowLosses] = field(default_factory=dict)
    """The rows of each validation set before the first step, by what `set_key` gives."""
    kept_rows: dict[str, RowLosses] = field(default_factory=dict)
    """The same at the step that the run would export now."""
    share_changes: list[ShareChange] = field(default_factory=list)
    """Decisions on the share of replay, in order."""

    def add(self, step: Step, names: Sequence[str]) -> None:
        """Count a step as made. `names`: of the sources, where there are several."""
        self.step += 1
        self.tokens += step.tokens
        self.targets += step.targets
        for name, tokens, targets in zip(names, step.tokens_K, step.targets_K, strict=False):
            counts = self.sources.setdefault(name, Counts())
            counts.tokens += tokens
            counts.targets += targets

    def judge_by(self, valid_set: str) -> bool:
        """Let the best step be the best on this first validation set, a fingerprint of its data; -> whether it was the
        best on another one so far, and is to be found anew.
        """
        is_other = self.best_step > 0 and valid_set != self.best_set
        if is_other:
            self.best_step, self.best_loss, self.validations_since_best = 0, None, 0
        self.best_set = valid_set
        return is_other

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
        self.sizes = self.sizes or fresh.sizes
        return self


def set_key(split: Split) -> str:
    """What a validation set is known by, whatever its name: the fingerprint of its data, and the split where that is
    not the usual one.
    """
    return split.manifest["fingerprint"] + ("" if split.name == "valid" else f" {split.name}")
