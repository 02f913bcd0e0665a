"""The records of a run in the trackers that teams use: TensorBoard, W&B, MLflow and trackio, by one flag and with the
same names, and for Prometheus.

    train/<figure>   valid/<set>/<figure>   system/<figure>   system/gpu<number>/<figure>

A thread of its own hands them on, so that no step waits for a server, and nothing that goes wrong there stops a run: a
tracker that fails is said once and left out from then on.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from logtrain.observe.records import Record
from logtrain.observe.run_files import is_number

MOST_WAITING = 10_000  # records; more are dropped while a server does not answer
PATIENCE = 10.0  # seconds at the end for what still waits
EXTRA = "pip install 'logtrain[track]'"
Figures = dict[str, float]


class Tracker(Protocol):
    """What all of them can do."""

    def log(self, figures: Figures, step: int) -> None:
        """Hand on the figures of a step."""
        ...

    def close(self, export: str) -> None:
        """End the run there. `export`: the folder of the exported model, "" without one."""
        ...


class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir runs`. TensorFlow is not needed."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
        self.writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text("config", "\n".join(f"    {key} = {value}" for key, value in config.items()))

    def log(self, figures: Figures, step: int) -> None:
        """See Tracker."""
        for key, value in figures.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def close(self, export: str) -> None:
        """See Tracker."""
        if export:
            self.writer.add_text("export", export)
        self.writer.close()


class Wandb:
    """Weights & Biases; WANDB_MODE=offline keeps the run in the run's folder, for `wandb sync`."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
        wandb: Any = import_module("wandb")
        self.run = wandb.init(
            project="logtrain", name=name, id=run_id(folder), resume="allow", dir=str(folder), config=dict(config)
        )

    def log(self, figures: Figures, step: int) -> None:
        """See Tracker."""
        self.run.log({**figures, "step": step})  # a step of its own: W&B's must not fall, and a resumed run's does

    def close(self, export: str) -> None:
        """See Tracker."""
        if export:
            self.run.summary["export"] = export
        self.run.finish()


class Mlflow:
    """MLflow, at MLFLOW_TRACKING_URI or in its own folder mlruns."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
        self.client: Any = import_module("mlflow.tracking").MlflowClient()
        self.metric: Any = import_module("mlflow.entities").Metric
        found = self.client.get_experiment_by_name("logtrain")
        experiment = found.experiment_id if found else self.client.create_experiment("logtrain")
        self.id = self.client.create_run(experiment, run_name=name).info.run_id
        for key, value in config.items():
            self.client.log_param(self.id, key, str(value)[:500])

    def log(self, figures: Figures, step: int) -> None:
        """See Tracker."""
        now = int(1000 * time.time())
        self.client.log_batch(self.id, [self.metric(key, value, now, step) for key, value in figures.items()])

    def close(self, export: str) -> None:
        """See Tracker."""
        if export:
            self.client.set_tag(self.id, "export", export)
        self.client.set_terminated(self.id)


class Trackio:
    """trackio, local first; TRACKIO_DIR says where."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
        self.trackio: Any = import_module("trackio")
        self.trackio.init(project="logtrain", name=name, config=dict(config))

    def log(self, figures: Figures, step: int) -> None:
        """See Tracker."""
        self.trackio.log(figures, step=step)

    def close(self, export: str) -> None:
        """See Tracker."""
        if export:
            self.trackio.log({"export": export})
        self.trackio.finish()


# The names of --track, what makes each, and the module that it needs.
TRACKERS: dict[str, tuple[Callable[[Path, str, Mapping[str, Any]], Tracker], str]] = {
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (Wandb, "wandb"),
    "mlflow": (Mlflow, "mlflow"),
    "trackio": (Trackio, "trackio"),
}


def check_trackers(names: tuple[str, ...]) -> None:
    """Raises ValueError for a tracker that is not installed: before the run, not at its first record."""
    for name in names:
        if find_spec(TRACKERS[name][1]) is None:
            raise ValueError(f"track = {name}: not installed; {EXTRA}")


def run_id(folder: Path) -> str:
    """The same id for every start of one run."""
    return "".join(c if c.isalnum() else "-" for c in str(folder.absolute()))[-64:].strip("-")


def figures_of(record: Record) -> Figures:
    """The figures of a record under the names that all trackers share."""
    if "set" in record:
        prefix = f"valid/{record['set']}/"
        return {prefix + key.removeprefix("valid_"): value for key, value in numbers(record).items()}
    return {f"train/{key}": value for key, value in numbers(record).items()}


def numbers(record: Mapping[str, Any]) -> Figures:
    """The entries that are figures, but for step and time."""
    return {key: float(value) for key, value in record.items() if is_number(value) and key not in ("step", "time")}


def figures_of_sample(sample: Mapping[str, Any]) -> Figures:
    """The figures of a sample of the machine."""
    found = {f"system/{key}": value for key, value in numbers(sample).items()}
    for at, gpu in enumerate(sample.get("gpus", [])):
        found |= {f"system/gpu{at}/{key}": value for key, value in numbers(gpu).items()}
    return found


class Trackers:
    """All trackers of a run, behind one thread. Rank 0 has them."""

    def __init__(
        self,
        names: tuple[str, ...],
        folder: Path,
        name: str,
        config: Mapping[str, Any],
        say: Callable[[str], None],
    ):
        """`say`: what is done with a tracker's failure, in words."""
        self.waiting: queue.Queue[tuple[Figures, int] | None] = queue.Queue(MOST_WAITING)
        self.say, self.export, self.of_run = say, "", (folder, name, config)
        self.names, self.trackers = names, {}
        self.thread = threading.Thread(target=self.work, name="trackers", daemon=True)
        if names:
            self.thread.start()

    def log(self, figures: Figures, step: int) -> None:
        """Hand on figures; nothing waits for it."""
        if self.names:
            with contextlib.suppress(queue.Full):
                self.waiting.put_nowait((figures, step))

    def close(self) -> None:
        """Hand on what waits, for a while."""
        if self.thread.is_alive():
            with contextlib.suppress(queue.Full):
                self.waiting.put(None, timeout=PATIENCE)
            self.thread.join(PATIENCE)

    # ---- in the thread

    def work(self) -> None:
        """Begin, log and end with every tracker."""
        for name in self.names:
            self.guarded(name, lambda name=name: self.trackers.update({name: TRACKERS[name][0](*self.of_run)}))
        while (item := self.waiting.get()) is not None:
            figures, step = item
            for name, tracker in list(self.trackers.items()):
                self.guarded(name, partial(tracker.log, figures, step))
        for name, tracker in list(self.trackers.items()):
            self.guarded(name, partial(tracker.close, self.export))

    def guarded(self, name: str, action: Callable[[], Any]) -> None:
        """Do something with a tracker; one that fails is said and left out from then on."""
        try:
            action()
        except BaseException as error:  # some end the process for a missing login
            self.trackers.pop(name, None)
            what = " ".join(str(error).split())[:200]
            self.say(f"{name}: {type(error).__name__}: {what}; the run goes on without it")
