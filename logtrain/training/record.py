"""What the records of a run say of a source, of a validation, and of what is wrong."""

import math
import platform
import time
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from logtrain.core.world import World
from logtrain.data.loader import Loader, Step
from logtrain.observe.config import HealthConfig
from logtrain.observe.health import Event, Health
from logtrain.observe.records import Record
from logtrain.training.block_time import BlockTime
from logtrain.training.interval import Interval
from logtrain.training.objective import Distillation
from logtrain.training.preference import MEASURES
from logtrain.training.state import TrainState, set_key
from logtrain.training.step import Objective, StepResult, Validation


def of_sources(names: list[str], interval: Interval, state: TrainState, world: World) -> Record:
    """A record's entries for each source, where the run has several: its loss over all steps since the last record, for
    a step may have no row of it; and what was trained on so far. Every rank calls this.
    """
    if not names:
        return {}
    assert isinstance(interval.summed_loss_K, Tensor), "a record is made after a step"
    found: Record = {}
    losses_K = world.sum(interval.summed_loss_K).tolist()
    for name, loss, targets in zip(names, losses_K, interval.targets_K, strict=True):
        counts = state.sources[name]
        found[f"loss.{name}"] = loss / targets if targets else None
        found[f"tokens.{name}"], found[f"targets.{name}"] = counts.tokens, counts.targets
    return found


def of_measures(result: StepResult, targets: int, world: World) -> Record:
    """A record's entries for what the objective of the last step tells beside its loss: means over the step's pairs."""
    if result.measures_M is None or len(result.measures_M) != len(MEASURES):
        return {}
    return named(world.sum(result.measures_M.clone()).div(max(1, targets)).tolist())


def of_teacher(objective: Objective, interval: Interval, world: World) -> Record:
    """A record's entry for the divergence of the model from the teacher of its replay, in nats a token that has one,
    over all steps since the last record; None where these had none. Every rank calls this.
    """
    if not isinstance(objective, Distillation):
        return {}
    assert isinstance(interval.measures_M, Tensor), "a record is made after a step"
    divergence, count = world.sum(interval.measures_M.clone()).tolist()
    return {"replay_kl": divergence / count if count else None}


def named(measures: Iterable[float]) -> Record:
    """The measures of pairs by their names."""
    return dict(zip(MEASURES, measures, strict=True))


def of_validation(name: str, found: Validation, loader: Loader, state: TrainState, epoch: float) -> Record:
    """The record of a validation set, of which `state` remembers the loss before the first step."""
    key = set_key(loader.split)
    if state.step == 0 and math.isfinite(found.loss):
        state.start_losses[key] = found.loss
    start = state.start_losses.get(key)  # None for a set that a resumed run has added
    record: Record = {
        "time": time.time(),
        "step": state.step,
        "epoch": epoch,
        "set": name,
        "valid_loss": found.loss,
        "delta": None if start is None else found.loss - start,
        "valid_targets": found.targets,
    }
    if found.measures:
        record |= named(found.measures)
    if found.ends:
        record["ends_predicted"] = found.ends_predicted / found.ends
    return record


class Watch:
    """The health of a run: every rank gives its figures at each record, and rank 0 says what is wrong.

    The losses and norms of the steps in between stay on the device until then.
    """

    def __init__(self, config: HealthConfig, world: World, block_time: BlockTime):
        self.config, self.world, self.block_time = config, world, block_time
        nodes = [""] * world.size
        dist.all_gather_object(nodes, platform.node(), group=world.control)
        self.health = Health(config, nodes)
        self.steps: list[tuple[int, int, Tensor, Tensor]] = []  # number, targets, summed loss, gradient norm

    def add(self, number: int, step: Step, result: StepResult) -> None:
        """Remember a step; nothing waits for the device."""
        if self.config.spike:
            self.steps.append((number, step.targets, result.summed_loss, result.grad_norm))

    def events(self, record: Record, folder: str, checkpoint_bytes: int) -> Iterator[Event]:
        """What is wrong since the last record. Every rank calls this and walks through it, and rank 0 gets them."""
        spikes, seconds_R = self.read_steps(), self.of_all_ranks(self.block_time.read())
        if not self.world.is_main:
            return
        step, data_seconds, step_seconds = (record[key] for key in ("step", "data_seconds", "step_seconds"))
        assert isinstance(step, int) and isinstance(data_seconds, float) and isinstance(step_seconds, float)
        for number, loss, norm in spikes:
            yield from self.health.spikes(number, {"loss": loss, "gradient norm": norm})
        yield from self.health.stragglers(step, seconds_R)
        yield from self.health.waits(step, data_seconds, step_seconds)
        yield from self.health.disk(step, folder, checkpoint_bytes)

    def read_steps(self) -> list[tuple[int, float, float]]:
        """(number, loss a target, gradient norm) of the steps since the last call, which the device has made."""
        steps, self.steps = self.steps, []
        if not steps:
            return []
        losses_S = self.world.sum(torch.stack([summed for _, _, summed, _ in steps])).tolist()
        norms_S = torch.stack([norm for *_, norm in steps]).tolist()
        counts = [(number, max(1, targets)) for number, targets, *_ in steps]
        return [(n, loss / t, norm) for (n, t), loss, norm in zip(counts, losses_S, norms_S, strict=True)]

    def of_all_ranks(self, value: float) -> list[float]:
        """A figure of every rank, from host to host."""
        found_R = torch.zeros(self.world.size, dtype=torch.float64)
        found_R[self.world.rank] = value
        dist.all_reduce(found_R, group=self.world.control)
        return found_R.tolist()
