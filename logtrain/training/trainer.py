"""The training loop: it takes built parts and runs them, step by step, until the end or until asked to stop.

A loss is a sum over targets, divided once: by the targets of the whole step over all ranks and micro-batches, which
the loader knows beforehand. Ranks average gradients, hence the factor world size. Losses stay on the device until a
step is logged, so the host runs ahead of the GPU.
"""

import gc
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch

from logtrain.data.loader import Loader, Step
from logtrain.model.llama import Llama
from logtrain.observe.metrics import Metrics, model_flops, peak_flops, peak_memory_gib
from logtrain.training.checkpoint import Checkpoints
from logtrain.training.optim import OptimConfig
from logtrain.training.sharding import StopSignal, World, clip_grad_norm, last_micro_batch, reshard


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    epochs: int = 1
    """Passes over the training split."""
    max_steps: int = 0
    """End after this many steps, the schedule with them. 0: as many as the epochs have."""
    max_grad_norm: float = 1.0
    """Global L2 norm to which gradients are clipped. 0: no clipping."""
    log_every: int = 10
    """Steps between records."""
    valid_every: int = 0
    """Steps between validations; there is one before the first step and one after the last in any case. 0: each
    epoch.
    """
    save_every: int = 0
    """Steps between checkpoints; there is one after the last step in any case. 0: each epoch."""
    keep: int = 2
    """Newest checkpoints that stay. 0: all."""
    keep_best: bool = False
    """Save whenever the first validation set's loss is the lowest so far, keep that checkpoint, and export it."""
    patience: int = 0
    """End after so many validations without a lower loss. 0: never."""
    stop_after: int = 0
    """Save and exit with 75 after this step, as SIGTERM would; the schedule does not change. 0: never."""

    def __post_init__(self):
        for name in ("epochs", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} = {getattr(self, name)} must be at least 1")
        for name in ("max_steps", "max_grad_norm", "valid_every", "save_every", "keep", "patience", "stop_after"):
            if getattr(self, name) < 0:
                raise ValueError(f"trainer.{name} = {getattr(self, name)} must not be negative")

    def total_steps(self, steps_per_epoch: int) -> int:
        most = self.epochs * steps_per_epoch
        if self.max_steps > most:
            raise ValueError(
                f"trainer.max_steps = {self.max_steps}, but {self.epochs} epochs have {most}; raise trainer.epochs"
            )
        return self.max_steps or most


class Trainer:
    def __init__(
        self,
        config: TrainerConfig,
        *,
        model: Llama,
        optimizer: torch.optim.Optimizer,
        optim: OptimConfig,
        train: Loader,
        valid: Mapping[str, Loader],
        world: World,
        checkpoints: Checkpoints,
        metrics: Metrics,
        state: dict,
    ):
        """`state`: "step", "tokens" and "targets" trained so far and what else a checkpoint shall carry; kept up to
        date here.
        """
        self.config, self.model, self.optimizer, self.optim = config, model, optimizer, optim
        self.train, self.valid, self.world = train, valid, world
        self.checkpoints, self.metrics = checkpoints, metrics
        self.state = state
        self.train.step = self.state["step"]
        self.total_steps = config.total_steps(train.steps_per_epoch)
        self.peak_flops = peak_flops(world.device)
        parameters = list(model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        self.adapters = sum(p.numel() for p in trained) if len(trained) < len(parameters) else 0
        self.grad_norm = torch.zeros((), device=world.device)
        self.warm = False
        self.start_interval()

    def fit(self) -> bool:
        """Train to the last step; False when a stop was asked for and everything is saved."""
        # Left in reverse order: a signal, and torchrun sends its own after the terminal's, spares the last checkpoint.
        stop, steps = StopSignal(self.world), iter(self.train)
        with closing(stop), closing(self.checkpoints), closing(steps), collection_at_records():
            if self.state["step"] == 0:
                self.validate()
            self.start_interval()
            while self.state["step"] < self.total_steps and not self.given_up():
                waited = time.perf_counter()
                step = next(steps)
                self.data_seconds += time.perf_counter() - waited
                self.train_step(step)
                failed = self.checkpoints.failed()  # ends the run now: all trained until the next save would be lost
                stopping = stop.requested(failed) or self.state["step"] + 1 == self.config.stop_after
                self.after_step(step, stopping)
                if stopping and self.state["step"] < self.total_steps:
                    return False
            return True

    def train_step(self, step: Step) -> None:
        """Forward and backward of every micro-batch, then one update. Nothing here waits for the device."""
        self.loss = torch.zeros((), device=self.world.device)
        for i, batch in enumerate(step.batches):
            last_micro_batch(self.model, last=i == len(step.batches) - 1)
            summed = self.model(*batch.model_inputs(self.world.device))
            (summed * (self.world.size / max(1, step.targets))).backward()
            self.loss += summed.detach()
        self.grad_norm = clip_grad_norm(self.model, self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim.lr_at(self.state["step"], self.total_steps)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def after_step(self, step: Step, stopping: bool) -> None:
        """Count the step, then log, validate and save where they are due."""
        self.state["step"] += 1
        self.state["tokens"] += step.tokens
        self.state["targets"] += step.targets
        self.steps += 1
        self.tokens += step.tokens
        self.pairs += step.attention_pairs
        number, epoch_length = self.state["step"], self.train.steps_per_epoch
        done = number == self.total_steps
        saving = done or stopping or number % (self.config.save_every or epoch_length) == 0
        validating = done or number % (self.config.valid_every or epoch_length) == 0
        if saving or validating or number % self.config.log_every == 0:
            # First: what has diverged is not saved, and the clock of training stops with the device idle.
            self.log(step.targets)
        elif not self.warm:  # what only a first step does, to allocate and compile, stays out of the rates
            self.world.wait_for_device()
            self.start_interval()
        self.warm = True
        if validating:
            self.validate()
            saving |= self.given_up() or (self.config.keep_best and self.state.get("best_step") == number)
        if saving:
            self.save()

    def given_up(self) -> bool:
        return 0 < self.config.patience <= self.state.get("worse", 0)

    def start_interval(self) -> None:
        self.steps, self.tokens, self.pairs = 0, 0, 0
        self.data_seconds, self.excluded_seconds = 0.0, 0.0
        self.began = time.perf_counter()

    def log(self, targets: int) -> None:
        """Record the last step, with rates over all since the last record; here alone the host waits for the device."""
        loss = self.world.sum(self.loss).item() / max(1, targets)
        grad_norm = self.grad_norm.item()
        seconds = time.perf_counter() - self.began - self.excluded_seconds
        flops = model_flops(self.model.config, self.tokens, self.pairs, self.adapters)
        number = self.state["step"]
        self.metrics.train(
            {
                "step": number,
                "epoch": number / self.train.steps_per_epoch,
                "loss": loss,
                "grad_norm": grad_norm,
                "lr": self.optim.lr_at(number - 1, self.total_steps),
                "tokens": self.state["tokens"],
                "targets": self.state["targets"],
                "tokens_per_second": self.tokens / seconds,
                "tokens_per_second_per_gpu": self.tokens / seconds / self.world.size,
                "mfu": flops / seconds / self.world.size / self.peak_flops if self.peak_flops else None,
                "peak_memory_gib": peak_memory_gib(self.world.device),
                "step_seconds": seconds / self.steps,
                "data_seconds": self.data_seconds / self.steps,
                "eta_seconds": (self.total_steps - number) * seconds / self.steps,
            }
        )
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.refuse(f"loss {loss}, gradient norm {grad_norm}")
        gc.collect(1)
        self.start_interval()

    def refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"step {self.state['step']}: {what}: training has diverged; the checkpoints before it stay; "
            f"lower optim.lr or lengthen optim.warmup_ratio"
        )

    @torch.no_grad()
    def validate(self) -> None:
        """Loss over the whole of each validation set, per target; the first one's tells which step is the best."""
        began, losses = time.perf_counter(), []
        for name, loader in self.valid.items():
            summed, targets = torch.zeros((), device=self.world.device), 0
            for number in range(loader.steps_per_epoch):
                step = loader.at(number)
                for batch in step.batches:
                    summed += self.model(*batch.model_inputs(self.world.device))
                targets += step.targets
            losses.append(self.world.sum(summed).item() / max(1, targets))
            self.metrics.valid(
                {
                    "step": self.state["step"],
                    "epoch": self.state["step"] / self.train.steps_per_epoch,
                    "set": name,
                    "valid_loss": losses[-1],
                    "valid_targets": targets,
                }
            )
            if self.state["step"] and not math.isfinite(losses[-1]):
                self.refuse(f"loss {losses[-1]} on {name}")
        if losses and self.state["step"] and losses[0] < self.state.get("best_loss", math.inf):
            self.state |= {"best_loss": losses[0], "best_step": self.state["step"], "worse": 0}
        elif losses and self.state["step"]:
            self.state["worse"] += 1
        reshard(self.model)
        self.excluded_seconds += time.perf_counter() - began

    def save(self) -> None:
        began = time.perf_counter()
        self.checkpoints.save(self.state["step"], self.model, self.optimizer, dict(self.state))
        self.excluded_seconds += time.perf_counter() - began


@contextmanager
def collection_at_records() -> Iterator[None]:
    """Python's garbage is collected where a record is made, on all ranks at once, not whenever one of them has made
    enough: a rank that stops for it keeps all others waiting.
    """
    gc.collect()
    gc.freeze()  # the model, the data: never looked at again
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
