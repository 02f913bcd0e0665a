"""The training loop, which runs parts that are built, step by step, to the last step or until a stop is asked for.

Losses stay on the device until a step is logged, so the host runs ahead of the GPU.
"""

import gc
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import NoReturn

from torch import Tensor

from logtrain.core.world import StopSignal, World
from logtrain.data.loader import Loader, Step
from logtrain.model.flops import model_flops, peak_flops
from logtrain.observe.metrics import Metrics
from logtrain.observe.records import Record
from logtrain.observe.system import peak_memory_gib
from logtrain.training.checkpoint import Checkpoints
from logtrain.training.config import TrainerConfig
from logtrain.training.interval import Interval, SkippedSteps
from logtrain.training.state import TrainState
from logtrain.training.step import StepResult, TrainStep, validate


class Trainer:
    """The loop of one run. Every rank makes one from the parts of the run, and calls `fit`."""

    def __init__(
        self,
        config: TrainerConfig,
        *,
        train_step: TrainStep,
        train: Loader,
        valid: Mapping[str, Loader],
        world: World,
        checkpoints: Checkpoints,
        metrics: Metrics,
        state: TrainState,
    ):
        """`valid`: validation sets by name, of which the first decides which step is the best. `state`: the counts of
        the run, which the trainer keeps up to date.
        """
        self.config, self.train_step, self.model = config, train_step, train_step.model
        self.train, self.valid, self.world = train, valid, world
        self.checkpoints, self.metrics, self.state = checkpoints, metrics, state
        self.total_steps = train_step.total_steps
        self.train.step, self.train.end = state.step, self.total_steps
        self.peak_flops = peak_flops(self.world.device)
        parameters = list(self.model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        self.adapter_parameters = sum(p.numel() for p in trained) if len(trained) < len(parameters) else 0
        self.is_warm = False
        self.interval = Interval()
        self.skipped = SkippedSteps(self.world.device)

    def fit(self) -> bool:
        """Train to the last step; -> False if a stop was asked for, and everything is saved. Raises ValueError for
        training that has diverged, and for a checkpoint that could not be written.
        """
        # These are closed in reverse order, so a signal (torchrun sends one after the terminal's) ends the process only
        # when the last checkpoint is written.
        stop, steps = StopSignal(self.world), iter(self.train)
        with closing(stop), closing(self.checkpoints), closing(steps), collection_at_records():
            if self.state.step == 0:
                self.validate()
            self.interval = Interval()
            while self.state.step < self.total_steps and not self.out_of_patience():
                number, waited = self.state.step + 1, time.perf_counter()
                self.world.note(f"the rows of step {number}")
                step = next(steps)
                self.world.note(f"step {number}")
                self.interval.data_seconds += time.perf_counter() - waited
                result = self.train_step(step, self.state.step)
                failed = self.checkpoints.failed()  # ends the run now: all trained until the next save would be lost
                stopping = stop.exchange(failed) or self.state.step + 1 == self.config.stop_after
                self.after_step(step, result, stopping)
                if stopping and self.state.step < self.total_steps:
                    return False
            return True

    def after_step(self, step: Step, result: StepResult, stopping: bool) -> None:
        """Count the step, then log, validate and save where they are due."""
        self.state.add(step, self.train.names)
        self.interval.add(step, result.summed_loss_K)
        self.skipped.add(result.skipped)
        number, epoch_length = self.state.step, self.train.steps_per_epoch
        done = number == self.total_steps
        saving = done or stopping or number % (self.config.save_every or epoch_length) == 0
        validating = done or number % (self.config.valid_every or epoch_length) == 0
        if saving or validating or number % self.config.log_every == 0:
            # Before a save, so that nothing that has diverged is saved, and the rates count until the device is idle.
            self.log(step, result)
        elif not self.is_warm:  # the rates leave out what a first step alone does: it allocates and compiles
            self.world.wait_for_device()
            self.interval = Interval()
        self.is_warm = True
        if validating:
            self.validate()
            saving |= self.out_of_patience() or (self.config.keep_best and self.state.best_step == number)
        if saving and self.is_worth_saving(done or stopping):
            with self.interval.excluding():
                self.state.records_crc32 = self.metrics.crc32
                self.checkpoints.save(self.model, self.train_step.optimizer, self.state)

    def is_worth_saving(self, is_last: bool) -> bool:
        """Whether the weights may be saved: not if the last gradients were not finite, for the weights may be damaged.
        Raises ValueError if this would be the last save of the run.
        """
        if self.skipped.in_a_row and is_last:
            self.refuse(f"the last {self.skipped.in_a_row} steps had gradients that are not finite")
        return not self.skipped.in_a_row

    def out_of_patience(self) -> bool:
        """Whether the validation loss has not fallen for `patience` validations."""
        return 0 < self.config.patience <= self.state.validations_since_best

    def log(self, step: Step, result: StepResult) -> None:
        """Record the last step, with rates over all steps since the last record. Only here the host waits for the
        device. Raises ValueError after `max_skipped` skipped steps in a row.
        """
        loss = self.world.sum(result.summed_loss).item() / max(1, step.targets)
        grad_norm = result.grad_norm.item()
        self.state.skipped += self.skipped.read()
        number, interval = self.state.step, self.interval
        seconds = interval.seconds
        flops = model_flops(self.model.config, interval.tokens, interval.attention_pairs, self.adapter_parameters)
        self.metrics.train(
            {
                "step": number,
                "epoch": number / self.train.steps_per_epoch,
                "loss": loss,
                "grad_norm": grad_norm,
                "lr": self.train_step.lr_at(number - 1),
                "tokens": self.state.tokens,
                "targets": self.state.targets,
                "skipped_steps": self.state.skipped,
                "tokens_per_second": interval.tokens / seconds,
                "tokens_per_second_per_gpu": interval.tokens / seconds / self.world.size,
                "mfu": flops / seconds / self.world.size / self.peak_flops if self.peak_flops else None,
                "peak_memory_gib": peak_memory_gib(self.world.device),
                "step_seconds": seconds / interval.steps,
                "data_seconds": interval.data_seconds / interval.steps,
                "eta_seconds": (self.total_steps - number) * seconds / interval.steps,
                **self.of_sources(),
            }
        )
        if self.skipped.longest >= self.config.max_skipped:
            self.refuse(f"loss {loss}, gradient norm {grad_norm}, {self.skipped.longest} steps in a row")
        if self.skipped.found:
            told = f"{self.skipped.found} of the last {interval.steps} steps had gradients that are not finite"
            self.metrics.info(f"step {number}: {told}; they updated nothing")
        gc.collect(1)
        self.interval = Interval()

    def of_sources(self) -> Record:
        """A record's entries for each source, where the run has several: its loss over all steps since the last record,
        for a step may have no row of it; and what was trained on so far.
        """
        if not self.train.names:
            return {}
        assert isinstance(self.interval.summed_loss_K, Tensor), "a record is made after a step"
        found: Record = {}
        losses_K = self.world.sum(self.interval.summed_loss_K).tolist()
        for name, loss, targets in zip(self.train.names, losses_K, self.interval.targets_K, strict=True):
            counts = self.state.sources[name]
            found[f"loss.{name}"] = loss / targets if targets else None
            found[f"tokens.{name}"], found[f"targets.{name}"] = counts.tokens, counts.targets
        return found

    def refuse(self, what: str) -> NoReturn:
        """Raises the ValueError of a run that has diverged."""
        raise ValueError(
            f"step {self.state.step}: {what}: training has diverged; the checkpoints before it stay; "
            f"lower optim.lr or lengthen optim.warmup_ratio"
        )

    def validate(self) -> None:
        """Record the loss over the whole of each validation set; that of the first decides which step is the best.
        Raises ValueError for a loss that is not finite, except before the first step.
        """
        number, losses = self.state.step, []
        with self.interval.excluding():
            for name, loader in self.valid.items():
                facts = loader.split.manifest
                end_id = facts["tokenizer"]["document_end_id"] if "chat" in facts else None
                found = validate(self.model, loader, loader.steps_per_epoch, self.world, end_id)
                losses.append(found.loss)
                if number == 0 and math.isfinite(found.loss):
                    self.state.start_losses[facts["fingerprint"]] = found.loss
                start = self.state.start_losses.get(facts["fingerprint"])  # None for a set that a resumed run has added
                record: Record = {
                    "step": number,
                    "epoch": number / self.train.steps_per_epoch,
                    "set": name,
                    "valid_loss": found.loss,
                    "delta": None if start is None else found.loss - start,
                    "valid_targets": found.targets,
                }
                if found.ends:
                    record["ends_predicted"] = found.ends_predicted / found.ends
                self.metrics.valid(record)
                if number and not math.isfinite(found.loss):
                    self.refuse(f"loss {found.loss} on {name}")
        best = self.state.best_loss
        if losses and number and (best is None or losses[0] < best):
            self.state.best_loss, self.state.best_step, self.state.validations_since_best = losses[0], number, 0
        elif losses and number:
            self.state.validations_since_best += 1


@contextmanager
def collection_at_records() -> Iterator[None]:
    """Leave the collection of Python's garbage to `Trainer.log`, which all ranks call after the same step. If each rank
    collected whenever it has enough garbage, it would keep all others waiting each time.
    """
    gc.collect()
    gc.freeze()  # the model and the data are never looked at again
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
