"""A training run from its config to the exported model, with every part that it builds in order.

setup.py       ranks, model shape, data      checkpoint.py   saving and resuming
checks.py      checks of device and disk     step.py         forward, backward, update
parts.py       what is trained, how far      trainer.py      the loop
sharding.py    the model on the ranks        publish.py      export and adapter
"""

import contextlib
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from logtrain.core.entry import INTERRUPTED
from logtrain.core.location import told
from logtrain.core.run_folder import enter_run_folder, flatten
from logtrain.core.still import Still
from logtrain.core.stop import StopSignal
from logtrain.data.loader import Loader
from logtrain.data.mixture import MixtureLoader
from logtrain.model.llama import Llama
from logtrain.model.weights import WeightSource
from logtrain.observe.goodput import Goodput, read_attempts
from logtrain.observe.live_report import LiveReport
from logtrain.observe.metrics import Metrics
from logtrain.observe.outlets import Outlets
from logtrain.observe.prometheus import Prometheus
from logtrain.observe.trackers import check_trackers
from logtrain.training.config import MAY_CHANGE, RunConfig
from logtrain.training.facts import shown, what_it_is
from logtrain.training.forgetting import Forgetting, measure_of
from logtrain.training.parts import Parts, build_parts
from logtrain.training.publish import publish_adapter, publish_model
from logtrain.training.setup import RunSetup, set_up
from logtrain.training.state import TrainState

Foretell = Callable[[RunConfig, int], Sequence[str]]


def train(config: RunConfig, stop: StopSignal, foretell: Foretell | None = None) -> int:
    """Train, or resume training, and export; -> the exit status of the program. Every rank calls this. `foretell`: what
    tells, of the config and the number of ranks, memory and time that the run will take, in lines; it may take minutes.

    Raises ValueError of one line for every mistake that the user can correct, and Stopped where a stop is asked for and
    there is nothing to save.
    """
    with Still():
        return train_aloud(config, stop, foretell)


def train_aloud(config: RunConfig, stop: StopSignal, foretell: Foretell | None) -> int:
    """What `train` does, but for saying what takes long."""
    goodput = Goodput()
    check_trackers(config.track)
    run = set_up(config)
    prometheus = Prometheus(config.prometheus if run.world.is_main else 0, config.name)
    weights = run.initial_weights()  # opened and checked here, read when the model is built
    resume = config.resume == "auto"
    with enter_run_folder(run.folder, run.config, resume, MAY_CHANGE) if run.world.is_main else nullcontext():
        run.world.barrier()
        try:
            report = LiveReport(run.folder, enabled=run.world.is_main)
            with closing(prometheus), closing(run.world.watchdog):
                finished = train_in_folder(run, weights, stop, goodput, report, prometheus, foretell)
            goodput.end("finished" if finished else "stopped on request")
            report.close()
        except BaseException as error:
            goodput.end(f"{type(error).__name__}: {error}")
            if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)):
                raise  # the latter two on a CPU
            device = torch.cuda.get_device_name() if run.world.device.type == "cuda" else platform.node()
            remedy = "lower loader.rows_per_batch, or set recompute to selective or full"
            raise ValueError(f"{device}: out of memory at {run.world.watchdog.doing}; {remedy}") from error
    run.world.close()
    return 0 if finished else INTERRUPTED


def train_in_folder(
    run: RunSetup,
    weights: WeightSource,
    stop: StopSignal,
    goodput: Goodput,
    report: LiveReport,
    prometheus: Prometheus,
    foretell: Foretell | None,
) -> bool:
    """Build the parts of a run, train and publish; -> False if the run was stopped on request, and is saved."""
    world = run.world
    if not run.config.trainer.save_last and world.from_main(world.is_main and is_finished(run)):
        return True
    goodput.enter("load")
    parts = build_parts(run, weights)
    if world.is_main:
        goodput.open(run.folder, parts.state.step, **devices_of(run), total_steps=parts.total_steps)
    with (
        Metrics(run.folder, enabled=world.is_main, total_steps=parts.total_steps, **parts.resumed()) as metrics,
        closing(outlets_of(run, metrics, goodput, prometheus)) as outlets,
    ):
        stop.say = metrics.info
        introduce(run, parts, metrics, foretell)
        forgetting = Forgetting(run.config, run.data.train, run.data.valid, world, metrics)
        trainer = parts.trainer(run, stop, metrics, goodput, report, forgetting)
        if not trainer.fit():
            tell_account(metrics, goodput)
            what = "saved; --resume auto goes on" if parts.state.step else "nothing to save; --resume auto starts it"
            metrics.info(f"stopped after step {parts.state.step} of {parts.total_steps}, {what}")
            return False
        stop.end_if_asked()
        conclude(run, parts, metrics, forgetting)
        goodput.enter("export")
        outlets.exported(publish(run, parts.model, metrics, stop.finish))
        tell_account(metrics, goodput)
    return True


def introduce(run: RunSetup, parts: Parts, metrics: Metrics, foretell: Foretell | None) -> None:
    """Tell what the run is, what it will take, and how its parts came about."""
    if not run.world.is_main:
        return
    for line in [*what_it_is(run, parts.model, parts.total_steps), *shown(run, run.config.show)]:
        metrics.info(line)
    if foretell is not None:
        work = partial(tell, metrics, partial(foretell, run.config, run.world.size))
        # A plan takes a minute, for which no step waits; without a GPU there is none.
        threading.Thread(target=work, daemon=True).start() if run.world.device.type == "cuda" else work()
    for line in [*parts.told, *unforeseen(run)]:
        metrics.info(line)


def conclude(run: RunSetup, parts: Parts, metrics: Metrics, forgetting: Forgetting) -> None:
    """Tell what was trained on and forgotten, and leave in the model the weights that are to be published."""
    state = parts.state
    for line in [*sources_told(run.data.train, state), *forgetting.told(state)]:
        metrics.info(line)
    if run.world.is_main:
        forgetting.write(run.folder, state)
    parts.optimizer.state.clear()
    if run.config.trainer.keep_best and state.best_step not in (0, state.step):
        parts.checkpoints.load(parts.checkpoints.at(state.best_step), parts.model)
        measure = measure_of(next(iter(run.data.valid.values())))
        metrics.info(f"step {state.best_step} is the best: {measure} {state.best_loss:.4f}, and is exported")


def is_finished(run: RunSetup) -> bool:
    """Whether the run has ended before and its last step, which is in no checkpoint, is exported; says so."""
    attempts = read_attempts(run.folder)
    export = run.folder / ("export" if run.config.export_merged else "adapter")
    if not (attempts and attempts[-1].ended == "finished" and export.is_dir()):
        return False
    print(told(f"{export}: exported already; there is nothing left to do"))
    return True


def tell(metrics: Metrics, lines: Callable[[], Sequence[str]]) -> None:
    """Tell lines that may take long to be found; of those that come once the run has ended nothing."""
    for line in lines():
        with contextlib.suppress(ValueError):  # its log is closed
            metrics.info(line)


def outlets_of(run: RunSetup, metrics: Metrics, goodput: Goodput, prometheus: Prometheus) -> Outlets:
    """Where the figures of a run go beside its own files."""
    world = run.world
    devices = range(torch.cuda.device_count() if world.device.type == "cuda" else 0)
    return Outlets(
        run.folder,
        flatten(run.config),
        rank=world.rank,
        is_first_of_machine=world.local_rank == 0,
        uuids=[f"GPU-{torch.cuda.get_device_properties(at).uuid}" for at in devices],
        metrics=metrics,
        goodput=goodput,
        prometheus=prometheus,
    )


def tell_account(metrics: Metrics, goodput: Goodput) -> None:
    """Where the time of the run went until now, and what it has cost."""
    goodput.write()
    for line in goodput.account().told():
        metrics.info(line)


def sources_told(train: Loader, state: TrainState) -> list[str]:
    """A line for each source of a mixture: what the run has taken of it, and how often it has seen it."""
    if not isinstance(train, MixtureLoader):
        return []
    passes, told = train.passes(state.step), []
    for (name, counts), seen in zip(state.sources.items(), passes, strict=True):
        share, left = counts.tokens / max(1, state.tokens), (1 - seen % 1) % 1
        told.append(
            f"source {name}: {counts.tokens:,} tokens ({share:.2%}), {counts.targets:,} targets, "
            f"seen {seen:.2f} times, {left:.0%} of a pass left"
        )
    return told


def publish(run: RunSetup, model: Llama, metrics: Metrics, proven: Callable[[], None]) -> Path:
    """Write the trained model to export/ and, with LoRA, its adapters to adapter/; -> the last folder written, of which
    `proven` is called before it gets its name.
    """
    folder = run.folder / "adapter"
    if run.config.lora.rank:
        result = publish_adapter(folder, model, run, None if run.config.export_merged else proven)
        metrics.info(f"adapters exported to {folder} {result}")
    if run.config.export_merged:
        folder = run.folder / "export"
        metrics.info(f"exported to {folder} {publish_model(folder, model, run, proven=proven)}")
    return folder


def unforeseen(run: RunSetup) -> Iterator[str]:
    """Lines on what the config alone does not say: which attention the run has, and the documents of a step."""
    if run.world.device.type == "cuda":
        yield run.attention
    if wanted := run.config.loader.documents_per_step:
        rows, mean = run.data.train.config.rows_per_step, run.data.documents_per_step
        yield f"{rows} rows a step hold {mean:.1f} documents on average, {wanted} were asked for"


def devices_of(run: RunSetup) -> dict[str, Any]:
    """The devices of the run and their price, of which its cost is counted."""
    device = torch.cuda.get_device_name() if run.world.device.type == "cuda" else "rank"
    return {"devices": run.world.size, "device": device, "price": run.config.price}
