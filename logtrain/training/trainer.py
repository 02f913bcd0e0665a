"""The training loop, which runs parts that are built, step by step, to the last step or until a stop is asked for.

Losses stay on the device until a step is logged, so the host runs ahead of the GPU.
"""

import gc
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import NoReturn

from logtrain.core.stop import StopSignal
from logtrain.core.units import size
from logtrain.core.world import StopAgreement, World
from logtrain.data.loader import Loader, Step
from logtrain.data.pairs import PairLoader
from logtrain.model.flops import model_flops, peak_flops
from logtrain.observe.config import HealthConfig
from logtrain.observe.goodput import Goodput, clock
from logtrain.observe.live_report import LiveReport
from logtrain.observe.metrics import Metrics
from logtrain.observe.records import Record
from logtrain.observe.system import peak_memory_gib
from logtrain.training.block_time import BlockTime
from logtrain.training.checkpoint import Checkpoints
from logtrain.training.config import TrainerConfig
from logtrain.training.forgetting import Forgetting, restore_shares
from logtrain.training.interval import Interval, SkippedSteps
from logtrain.training.record import Watch, of_measures, of_sources, of_teacher, of_validation
from logtrain.training.state import TrainState
from logtrain.training.step import GivenUp, StepResult, TrainStep, Validation, validate


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
        stop: StopSignal,
        goodput: Goodput,
        report: LiveReport,
        health: HealthConfig,
        forgetting: Forgetting,
    ):
        """`valid`: validation sets by name, of which the first decides which step is the best. `state`: the counts of
        the run, which the trainer keeps up to date.
        """
        self.stop, self.goodput, self.report = stop, goodput, report
        self.must_stop = StopAgreement(world, lambda: stop.asked or checkpoints.failed())
        self.config, self.train_step, self.model = config, train_step, train_step.model
        self.train, self.valid, self.world = train, valid, world
        self.checkpoints, self.metrics, self.state = checkpoints, metrics, state
        self.total_steps, self.forgetting = train_step.total_steps, forgetting
        self.train.step, self.train.end = state.step, self.total_steps
        restore_shares(train, config.replay_source, state)
        self.peak_flops = peak_flops(self.world.device)
        parameters = list(self.model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        self.adapter_parameters = sum(p.numel() for p in trained) if len(trained) < len(parameters) else 0
        self.bytes_to_save = 12 * sum(p.numel() for p in trained)
        self.last: tuple[Step, StepResult] | None = None  # the last complete step
        self.logged = self.saved = state.step
        self.interval = Interval()
        self.cold: Interval | None = None  # the first step's: it allocates and compiles, so rates leave it out
        self.skipped = SkippedSteps(self.world.device)
        self.block_time = BlockTime(self.model, self.world.device)
        self.watch = Watch(health, world, self.block_time)

    def fit(self) -> bool:
        """Train to the last step; -> False if a stop was asked for, and everything is saved. Raises ValueError for
        training that has diverged, and for a checkpoint that could not be written.
        """
        # These are closed in reverse order, so that the promise holds until the last checkpoint is written.
        steps = iter(self.train)
        with (
            self.stop.promising(self.promise),
            self.goodput.stage("step"),
            closing(self.block_time),
            closing(self.must_stop),
            closing(self.checkpoints),
            closing(steps),
            collection_at_records(),
        ):
            due = self.state.validation_due
            if (due or self.state.step == 0) and not self.validate():
                return False
            if due:
                self.state.records_crc32 = self.metrics.crc32
                self.checkpoints.amend(self.state)
            self.interval = Interval()
            while self.state.step < self.total_steps and not self.out_of_patience():
                step, began = self.next_step(steps), time.perf_counter()
                try:
                    result = self.train_step(step, self.state.step, self.must_stop)
                except GivenUp:
                    self.drop_step(began)
                    return False
                if not self.after_step(step, result):
                    return False
            return True

    def next_step(self, steps: Iterator[Step]) -> Step:
        """The rows of the next step."""
        number, waited = self.state.step + 1, time.perf_counter()
        self.world.note(f"the rows of step {number}")
        with self.goodput.stage("data wait"):
            step = next(steps)
        self.world.note(f"step {number}")
        self.interval.data_seconds += time.perf_counter() - waited
        return step

    def promise(self) -> str:
        """What happens now that a stop was asked for, in words; in another thread."""
        number, seconds = self.state.step, self.checkpoints.seconds
        if number == self.saved:
            kept = f"step {number} is saved already" if number else "nothing is trained yet"
        else:
            took = f"saved in about {clock(seconds)}" if seconds else f"{size(self.bytes_to_save)} to save"
            kept = f"step {number} is the last: {took}"
        return f"stopping after this micro-batch; {kept}"

    def drop_step(self, began: float) -> None:
        """End the training within a step, which is dropped: save the one before. `began`: when the step did."""
        if not self.stop.asked and not self.checkpoints.failed():
            self.metrics.info("another rank was asked to stop: stopping after this micro-batch")
        dropped = time.perf_counter() - began
        self.goodput.lose(dropped)
        self.interval.excluded_seconds += dropped
        if self.state.step > self.saved:
            if self.state.step > self.logged and self.last:
                if not self.interval.steps and self.cold:
                    self.interval = self.cold
                self.log(*self.last)
            if self.is_worth_saving(True):
                self.save()

    def save(self) -> None:
        """Begin to save the last complete step."""
        self.goodput.mark(self.state.step)
        with self.interval.excluding(), self.goodput.stage("checkpoint"):
            self.state.records_crc32 = self.metrics.crc32
            self.checkpoints.save(self.model, self.train_step.optimizer, self.state)
        self.saved = self.state.step

    def after_step(self, step: Step, result: StepResult) -> bool:
        """Count the step, then log, validate and save where they are due; -> False if training ends here, before its
        last step, and is saved.
        """
        stopping = self.state.step + 1 == self.config.stop_after
        self.last = step, result
        self.state.add(step, self.train.names)
        self.interval.add(step, result)
        self.watch.add(self.state.step, step, result)
        self.skipped.add(result.skipped)
        number, epoch_length = self.state.step, self.train.steps_per_epoch
        done = number == self.total_steps
        saving = stopping or number % (self.config.save_every or epoch_length) == 0
        validating = done or number % (self.config.valid_every or epoch_length) == 0
        if saving or validating or number % self.config.log_every == 0:
            # Before a save, so that nothing that has diverged is saved, and the rates count until the device is idle.
            self.log(step, result)
        elif self.cold is None:
            self.world.wait_for_device()
            self.cold, self.interval = self.interval.end(), Interval()
        if validating:
            stopping |= not self.validate()
            done |= self.out_of_patience()
            saving |= self.config.keep_best and self.state.best_step == number
        saving = stopping or (self.config.save_last if done else saving)
        if (saving or done) and self.is_worth_saving(done or stopping) and saving:
            self.save()
        return not stopping or (done and not self.state.validation_due)

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
        loss = self.world.sum(result.summed_loss.clone()).item() / max(1, step.targets)
        grad_norm = result.grad_norm.item()
        self.state.skipped += self.skipped.read()
        number, interval = self.state.step, self.interval
        seconds = interval.seconds
        flops = model_flops(self.model.config, interval.tokens, interval.attention_pairs, self.adapter_parameters)
        record: Record = {
            "time": time.time(),
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
            **self.cost(),
            **of_sources(self.train.names, interval, self.state, self.world),
            **of_measures(result, step.targets, self.world),
            **of_teacher(self.train_step.objective, interval, self.world),
        }
        self.metrics.train(record)
        for event in self.watch.events(record, str(self.checkpoints.folder), self.bytes_to_save):
            self.metrics.event(event)
        if self.skipped.longest >= self.config.max_skipped:
            self.refuse(f"loss {loss}, gradient norm {grad_norm}, {self.skipped.longest} steps in a row")
        if self.skipped.found:
            told = f"{self.skipped.found} of the last {interval.steps} steps had gradients that are not finite"
            self.metrics.info(f"step {number}: {told}; they updated nothing")
        gc.collect(1)
        self.logged, self.cold, self.interval = number, self.cold or self.interval, Interval()

    def cost(self) -> Record:
        """A record's entries for the time and money of the whole run until now."""
        if not self.world.is_main:
            return {}
        self.goodput.attempt.tokens = self.state.tokens
        account = self.goodput.account()
        self.goodput.write_now_and_then()
        dollars = {"dollars": account.dollars} if account.price else {}
        return {"goodput": account.goodput, "device_hours": account.device_hours, **dollars}

    def refuse(self, what: str) -> NoReturn:
        """Raises the ValueError of a run that has diverged."""
        raise ValueError(
            f"step {self.state.step}: {what}: training has diverged; the checkpoints before it stay; "
            f"lower optim.lr or lengthen optim.warmup_ratio"
        )

    def validate(self) -> bool:
        """Record the loss over the whole of each validation set; that of the first decides which step is the best. ->
        False, and nothing recorded, if a stop was asked for meanwhile. Raises ValueError for a loss that is not finite,
        except before the first step.
        """
        number = self.state.step
        with self.interval.excluding(), self.goodput.stage("validation"):
            try:
                found = {name: self.validate_on(loader) for name, loader in self.valid.items()}
            except GivenUp:
                self.state.validation_due = True
                return False
            self.state.validation_due = False
            for name, of_set in found.items():
                epoch = number / self.train.steps_per_epoch
                self.metrics.valid(of_validation(name, of_set, self.valid[name], self.state, epoch))
        self.report.refresh()
        for name, of_set in found.items():
            if number and not math.isfinite(of_set.loss):
                self.refuse(f"loss {of_set.loss} on {name}")
        self.forgetting.judge(found, self.state, is_last=number == self.total_steps)
        return True

    def validate_on(self, loader: Loader) -> Validation:
        """What one validation set gives. Raises GivenUp."""
        facts = loader.split.manifest
        end_id = facts["tokenizer"]["document_end_id"] if "chat" in facts else None
        objective = self.train_step.objective if isinstance(loader, PairLoader) else None
        return validate(self.model, loader, loader.steps_per_epoch, self.world, end_id, self.must_stop, objective)


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
