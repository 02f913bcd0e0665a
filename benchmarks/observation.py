"""What the observation of a run costs its steps: `python -m benchmarks.observation launch/recipes/demo.toml --model DIR
--data DIR`; rank 0 prints JSON.

Pairs of segments alternate (with, without; without, with; ...), each the same steps of the same model. Without: they
are made and the last loss is read. With: everything that a run has goes on beside them, which is the timing of the
middle block, losses and norms of every step kept for spikes, a record in files and on the screen, health, goodput, and
the threads of the monitor and of what says where a run is, which a run starts once and which are started before a
segment is timed. CPU seconds of the whole process are compared, as a busy machine's clock tells little; the median of
the differences, as a share of a segment without, has an interval by order statistics (95%).

`direct` is the same by adding up: CPU seconds of each part alone, over those of a step. It is the one that has digits.

`planned` puts these seconds of this machine into the plan of --plan, a recipe for GPUs: before a step's first launch
what a step and a record take, before each micro-batch's the timing of its block and two events, and every launch takes
longer by the share of a second in which the monitor is at work. It predicts how much longer the GPU's step is: not at
all where the host is ahead of the GPU.
"""

import contextlib
import io
import json
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from logtrain.core import entry
from logtrain.core.config import load
from logtrain.core.still import Still
from logtrain.data.loader import Step
from logtrain.observe.goodput import Goodput
from logtrain.observe.metrics import Metrics
from logtrain.observe.monitor import EVERY, Monitor
from logtrain.observe.records import Record
from logtrain.observe.sensors import GpuSensors, HostSensors
from logtrain.plan import gpus_of
from logtrain.planning.config import PlanConfig
from logtrain.planning.prediction import make_plan
from logtrain.planning.timeline import breakdown, costs_of
from logtrain.planning.timeline import run as simulate
from logtrain.training.block_time import BlockTime
from logtrain.training.config import RunConfig
from logtrain.training.optim import make_optimizer
from logtrain.training.record import Watch
from logtrain.training.setup import RunSetup, set_up
from logtrain.training.step import StepResult, TrainStep

DISK, CALLS = 1 << 30, 1000  # bytes that a checkpoint is said to take; calls of a part that are timed
EVENTS = 2  # launches that the timing of a block adds to a micro-batch on a GPU, where it records events


@dataclass(frozen=True, kw_only=True)
class ObservationConfig(RunConfig):
    """Time the steps of a job with and without all that is observed of it."""

    name: str = "observation"
    pairs: int = 30
    """Pairs of segments."""
    steps: int = 10
    """Steps of a segment; there is a record after its last, as trainer.log_every says by default."""
    plan: str = "launch/recipes/cpt_8xh100.toml"
    """Recipe of the job on GPUs that the seconds found here are put into."""


class Observed:
    """All that a run observes, around steps that are made here."""

    def __init__(self, run: RunSetup, train_step: TrainStep, folder: Path, total: int):
        self.run, self.train_step, self.goodput = run, train_step, Goodput()
        self.goodput.open(folder, 0, devices=run.world.size, device="rank", total_steps=total, price=0.0)
        self.metrics = Metrics(folder, enabled=run.world.is_main, total_steps=total)
        self.folder, self.number = folder, 0

    def segment(self, steps: list[Step]) -> float:
        """CPU seconds of the steps with everything beside them."""
        world = self.run.world
        timer = BlockTime(self.train_step.model, world.device)
        watch = Watch(self.run.config.health, world, timer)
        monitor = Monitor(self.folder, 0, enabled=world.local_rank == 0, say=self.metrics.event).start()
        with Still(world.is_main), closing(monitor), closing(timer), self.goodput.stage("step"):
            began, result = time.process_time(), None
            for step in steps:
                self.number += 1
                world.note(f"step {self.number}")
                result = self.train_step(step, 0)
                watch.add(self.number, step, result)
            assert result is not None
            self.record(steps[-1], result, watch)
            return time.process_time() - began

    def record(self, step: Step, result: StepResult, watch: Watch) -> None:
        """What `Trainer.log` does after a step."""
        loss = result.summed_loss.item() / max(1, step.targets)
        account = self.goodput.account()
        self.goodput.write_now_and_then()
        record: Record = {"time": time.time(), "step": self.number, "epoch": 0.1, "loss": loss}
        record |= {"grad_norm": result.grad_norm.item(), "lr": 1e-3, "tokens": step.tokens, "targets": step.targets}
        record |= {"tokens_per_second": 1.0, "tokens_per_second_per_gpu": 1.0, "mfu": None, "peak_memory_gib": 1.0}
        record |= {"step_seconds": 1.0, "data_seconds": 0.0, "eta_seconds": 1.0, "goodput": account.goodput}
        self.metrics.train(record)
        for event in watch.events(record, str(self.folder), DISK):
            self.metrics.event(event)


def plain(train_step: TrainStep, steps: list[Step]) -> None:
    """The steps with nothing beside them."""
    result = None
    for step in steps:
        result = train_step(step, 0)
    assert result is not None
    result.summed_loss.item()


def timed(call: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of a call by a clock: of the processors, all threads."""
    began = clock()
    call()
    return clock() - began


def interval(values: list[float], share: float = 0.95) -> tuple[float, float]:
    """An interval of the median by order statistics, which assumes nothing of the distribution but independence."""
    ordered, n = sorted(values), len(values)
    covered, below = 0.0, 0
    for rank in range(n // 2 + 1):  # the largest rank whose two tails together have at most 1 - share
        covered += 2 * math.comb(n, rank) / 2**n
        if covered > 1 - share:
            break
        below = rank
    return ordered[below], ordered[n - 1 - below]


def direct(observed: Observed, steps: list[Step]) -> dict[str, float]:
    """CPU seconds a step of each part alone."""
    world, model = observed.run.world, observed.train_step.model
    result = observed.train_step(steps[0], 0)
    timer = BlockTime(model, world.device)
    watch = Watch(observed.run.config.health, world, timer)

    def block() -> None:
        timer.spans.clear()
        timer.before(model, ())
        timer.after(model, (), ())

    def a_record() -> None:
        for number, step in enumerate(steps):
            watch.add(number, step, result)
        observed.record(steps[0], result, watch)

    host, gpus = HostSensors(), GpuSensors()
    batches = len(steps[0].batches)
    with closing(timer):
        parts = {
            "timing of a block": batches * timed(lambda: [block() for _ in range(CALLS)], time.thread_time) / CALLS,
            "note": timed(lambda: [world.note(f"step {at}") for at in range(CALLS)], time.thread_time) / CALLS,
            "record": timed(lambda: [a_record() for _ in range(20)], time.thread_time) / 20 / len(steps),
        }
    sample = timed(lambda: [json.dumps([host.read(), gpus.read()]) for _ in range(50)], time.thread_time) / 50
    return {**parts, "monitor, a second": sample / EVERY}


def planned(recipe: str, parts: dict[str, float], batches: int) -> dict[str, float]:
    """Predicted seconds of a step on GPUs without observation and with it. `parts`: its seconds in a step of so many
    micro-batches.
    """
    plan = make_plan(load(PlanConfig, [*gpus_of([recipe]), recipe]))
    ops, repeats = plan.trace.ops, plan.trace.repeats
    costs = costs_of(ops, plan.gpu, plan.workload)
    slower = costs._replace(host=costs.host * (1 + parts["monitor, a second"]))

    def launches(seconds: float) -> int:
        return math.ceil(seconds / slower.host)

    observed, batch = list(ops), 0
    for at, op in enumerate(ops):
        more = 0 if at else launches(parts["note"] + parts["record"])
        if op.micro_batch != batch:
            more += EVENTS + launches(parts["timing of a block"] / batches)
            batch = op.micro_batch
        observed[at] = replace(op, launches=op.launches + more) if more else op
    bare, with_it = (breakdown(ops, repeats, simulate(of, cost))[0] for of, cost in ((ops, costs), (observed, slower)))
    return {"step_seconds": bare, "observed_step_seconds": with_it, "overhead": with_it / bare - 1}


def main(argv: list[str]) -> int:
    config = load(ObservationConfig, argv)
    run = set_up(config)
    model = run.build_model(run.initial_weights())
    total = 2 * config.pairs * config.steps
    optimizer = make_optimizer(model, config.optim)
    train_step = TrainStep(model, optimizer, config.optim, config.trainer.max_grad_norm, total, run.world)
    steps = [run.data.train.at(number) for number in range(config.steps)]
    pairs: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        observed = Observed(run, train_step, Path(folder), total)
        plain(train_step, steps)  # warm
        wall = time.perf_counter()
        for number in range(config.pairs):
            order = (True, False) if number % 2 else (False, True)
            taken = {
                watched: observed.segment(steps) if watched else timed(lambda: plain(train_step, steps))
                for watched in order
            }
            pairs.append((taken[True], taken[False]))
        wall = (time.perf_counter() - wall) / total
        parts = direct(observed, steps)
        observed.metrics.close()
    shares = [watched / bare - 1 for watched, bare in pairs]
    step = median(bare for _, bare in pairs) / config.steps
    alone = sum(seconds * (wall if "second" in part else 1) for part, seconds in parts.items())
    run.world.close()  # the plan has a process group of its own
    if run.world.is_main:
        low, high = interval(shares)
        found = {"pairs": config.pairs, "steps_a_segment": config.steps, "step_cpu_seconds": step, "step_seconds": wall}
        found |= {"overhead": median(shares), "interval": [low, high], "direct": alone / step, "direct_seconds": parts}
        found["planned"] = planned(config.plan, parts, len(steps[0].batches))
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    entry.run(main)
