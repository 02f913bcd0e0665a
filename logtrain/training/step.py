"""One step of training: forward and backward of every micro-batch, then one update.

A loss is a sum over targets, divided once by the number of targets in the whole step, over all ranks and micro-batches,
which the loader knows beforehand. The loss is multiplied by the number of ranks, because ranks average gradients. What
is told of losses is summed in float64, so that the same weights have the same loss on any number of ranks.

A step whose gradients are not finite changes nothing: neither weights, nor moments, nor the counter of updates. A
tensor on the device tells the optimizer, so the host need not wait for it.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from logtrain.core.batch import IGNORE, Batch
from logtrain.core.world import World
from logtrain.data.loader import Loader, Step
from logtrain.model.llama import Llama
from logtrain.training.optim import skip_where
from logtrain.training.optim_config import OptimConfig
from logtrain.training.sharding import clip_grad_norm, free_gathered, last_micro_batch

MOST_MEASURES = 4  # sums that are told beside a loss


class StepResult(NamedTuple):
    """The results of a step, as tensors on the device, so that the host need not wait for them."""

    summed_loss: Tensor
    """Loss summed over this rank's targets, in nats; a float64 scalar."""
    summed_loss_K: Tensor
    """The same by source, float64 [K]."""
    grad_norm: Tensor
    """L2 norm of all gradients, over all ranks, before they were clipped; an fp32 scalar."""
    skipped: Tensor
    """1 where the gradients were not finite, so that nothing was updated, else 0; an fp32 scalar."""
    measures_M: Tensor | None = None
    """What the objective tells beside its loss, summed over this rank's targets, float64 [M]; None for nothing."""


class GivenUp(Exception):
    """A step or a validation was dropped, because a stop was asked for."""


class StepWorld(Protocol):
    """The facts of the ranks that a step needs; a `World` has them."""

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        ...

    @property
    def size(self) -> int:
        """The number of ranks."""
        ...


Objective = Callable[[Llama, Batch], Tensor]
"""What a step makes smaller: the summed loss of a micro-batch, an fp32 scalar; or fp32 [1 + M], that first, and behind
it sums that are told beside.
"""


def cross_entropy(model: Llama, batch: Batch) -> Tensor:
    """The objective of training on text and chats: an fp32 scalar, in nats."""
    return model(batch)


class TrainStep:
    """A model with the optimizer that updates it, and the learning rate of each update."""

    def __init__(
        self,
        model: Llama,
        optimizer: torch.optim.Optimizer,
        optim: OptimConfig,
        max_grad_norm: float,
        total_steps: int,
        world: StepWorld,
        objective: Objective = cross_entropy,
    ):
        """`max_grad_norm`: the norm that gradients are clipped to, 0 for no clipping. `total_steps`: the steps of the
        whole run, over which the learning rate takes its course.
        """
        self.objective = objective
        self.model, self.optimizer, self.optim = model, optimizer, optim
        self.max_grad_norm, self.total_steps, self.world = max_grad_norm, total_steps, world

    def __call__(self, step: Step, number: int, stopping: Callable[[], bool] = lambda: False) -> StepResult:
        """Train on the rows of `step`, which is update `number` (0-based) of the run. Nothing here waits for the
        device.

        `stopping`: asked before every micro-batch; raises GivenUp when it returns True, and nothing is updated.
        """
        summed_loss_K = torch.zeros(max(1, len(step.targets_K)), dtype=torch.float64, device=self.world.device)
        measured: list[Tensor] = []
        for i, batch in enumerate(step.batches):
            if stopping():
                self.optimizer.zero_grad()
                raise GivenUp
            last_micro_batch(self.model, last=i == len(step.batches) - 1)
            found = self.objective(self.model, batch.to(self.world.device))
            summed = found if found.ndim == 0 else found[0]
            measured += [found[1:].detach().double()] if found.ndim else []
            (summed * (self.world.size / max(1, step.targets))).backward()
            summed_loss_K[step.source_of_batch[i] if step.source_of_batch else 0] += summed.detach()
        grad_norm = clip_grad_norm(self.model, self.max_grad_norm)
        skipped = grad_norm.isfinite().logical_not().float()
        skip_where(self.optimizer, skipped)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(number)
        self.optimizer.step()
        self.optimizer.zero_grad()
        measures_M = torch.stack(measured).sum(0) if measured else None
        return StepResult(summed_loss_K.sum(), summed_loss_K, grad_norm, skipped, measures_M)

    def lr_at(self, number: int) -> float:
        """Learning rate of update `number` (0-based)."""
        return self.optim.lr_at(number, self.total_steps)


class Validation(NamedTuple):
    """What a validation set gives, over all ranks."""

    loss: float
    """Mean loss a target, in nats."""
    targets: int
    """Tokens that were predicted."""
    ends: int = 0
    """Of the targets, those that are the id that was asked for."""
    ends_predicted: int = 0
    """Of these, those for which the model finds it the most likely."""
    losses_R: tuple[float, ...] = ()
    """Loss summed over the targets of each micro-batch of all ranks, in the order of the loader."""
    targets_R: tuple[int, ...] = ()
    """Targets of each."""
    measures: tuple[float, ...] = ()
    """What an objective tells beside its loss, means a target."""


def num_targets(batch: Batch) -> int:
    """The targets of a micro-batch on the host: its pairs, where it was loaded as pairs, else its labels."""
    if batch.pairs_P3 is not None:
        return int((batch.pairs_P3[:, 0] >= 0).sum())
    assert batch.labels_T is not None
    return int((batch.labels_T != IGNORE).sum())


@torch.no_grad()
def validate(
    model: Llama,
    loader: Loader,
    num_steps: int,
    world: World,
    end_id: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
    objective: Objective | None = None,
) -> Validation:
    """The first `num_steps` steps of a loader, over all ranks. Nothing is trained. Every rank calls this. `objective`:
    None measures the cross-entropy.

    `end_id`: the id to count among the targets; None: none. `stopping`: asked before every step; raises
    GivenUp when it returns True.
    """
    in_float64 = {"dtype": torch.float64, "device": world.device}
    sums, targets = torch.zeros(1 + MOST_MEASURES, **in_float64), 0
    rows_2R = torch.zeros(2, num_steps * loader.accumulation * world.size, **in_float64)
    for number in range(num_steps):
        if stopping():
            free_gathered(model)
            raise GivenUp
        world.note(f"validation, step {number + 1} of {num_steps}")
        step = loader.at(number)
        for i, batch in enumerate(step.batches):
            on_device = batch.to(world.device)
            found = objective(model, on_device) if objective else model(on_device, end_id)
            sums[: found.numel()] += found
            row = (number * loader.accumulation + i) * world.size + world.rank
            rows_2R[0, row], rows_2R[1, row] = found.flatten()[0], num_targets(batch)
        targets += step.targets
    free_gathered(model)
    summed, *others = world.sum(sums).tolist()
    losses_R, targets_R = world.sum(rows_2R).tolist()
    rows, loss = (tuple(losses_R), tuple(map(round, targets_R))), summed / max(1, targets)
    if objective:
        return Validation(loss, targets, 0, 0, *rows, tuple(other / max(1, targets) for other in others))
    return Validation(loss, targets, round(others[0]), round(others[1]), *rows)
