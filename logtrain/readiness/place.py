"""The place of a run on a disk: whether it is free, whether there is room for all that the run will write."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from logtrain.core.lock import Held, Lock
from logtrain.core.run_folder import LOCK, check_begun
from logtrain.core.units import size
from logtrain.core.world import compute_dtype
from logtrain.model import hf
from logtrain.model.llama import LlamaConfig
from logtrain.model.lora import num_adapter_parameters
from logtrain.readiness import disk, foretold
from logtrain.training.checks import check_space
from logtrain.training.config import RunConfig
from logtrain.training.run_data import OpenedSplits


def check_free(folder: Path, resume: bool) -> None:
    """Raises ValueError where a run may neither be started nor resumed in `folder`, or another process does."""
    if check_begun(folder, resume) and (folder / LOCK).exists():
        try:
            Lock(folder / LOCK).close()
        except Held as other:
            raise ValueError(f"{folder}: in use by {other}; wait for it or choose another --name") from None


def take(scratch: Path) -> Lock:
    """Make the folder of a rehearsal, without what one that was killed has left; -> the lock on it. Raises OSError, and
    ValueError where another process has it.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(scratch / LOCK)
    except Held:
        raise ValueError(f"{scratch}: another process is rehearsing this run; wait for it") from None
    for left in scratch.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != LOCK:
            left.unlink()
    return lock


@dataclass(frozen=True)
class Needs:
    """What decides how much a run writes."""

    config: RunConfig
    """Its settings."""
    shape: LlamaConfig
    """Sizes of its model."""
    ranks: int
    """Ranks that write a checkpoint."""
    on_gpus: bool
    """Whether it computes on GPUs."""
    stored: int
    """Bytes of a weight in the model's files; 0 where none are read."""

    @property
    def export_dtype(self) -> torch.dtype:
        """Precision of the exported weights."""
        of_run = compute_dtype(torch.device("cuda" if self.on_gpus else "cpu"), self.config.dtype)
        return of_run if self.config.export_dtype == "auto" else getattr(torch, self.config.export_dtype)

    @property
    def export(self) -> int:
        """Bytes of the export."""
        return self.export_dtype.itemsize * self.shape.num_parameters * self.config.export_merged

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint."""
        return 12 * (num_adapter_parameters(self.shape, self.config.lora) or self.shape.num_parameters)


def check_room(runs: Path, needs: Needs, opened: OpenedSplits) -> None:
    """Raises ValueError where the disk of `runs` does not take all that the run will write."""
    config, loader = needs.config, needs.config.loader
    facts = next(iter(opened.sources.values())).manifest["splits"]["train"]
    steps = facts["tokens"] // (loader.seq_len * loader.rows_per_step)  # rows are 99% full
    if loader.documents_per_step:
        steps = facts["documents"] // loader.documents_per_step
    steps = max(1, steps)
    epochs = max(config.trainer.epochs, -(-config.trainer.max_steps // steps))
    within = replace(config, trainer=replace(config.trainer, epochs=epochs))
    check_space(runs, within, needs.shape, needs.export_dtype, steps, 0)
    disk.check_limits(runs, max(needs.checkpoint // needs.ranks, min(hf.FILE_BYTES, needs.export)))


def told(runs: Path, needs: Needs, rates: disk.Rates) -> list[str]:
    """What the run and its rehearsal write, in words."""
    moved = foretold.bytes_of_rehearsal(needs.config, needs.shape, needs.stored, needs.export_dtype.itemsize)
    return [
        f"{size(shutil.disk_usage(runs).free)} free; a checkpoint is {size(needs.checkpoint)}, "
        f"{needs.checkpoint / rates.write:.0f} s at this rate, beside the training; the export {size(needs.export)}",
        foretold.told_of_disk(*moved, rates),
    ]
