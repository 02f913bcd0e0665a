"""The rehearsal of a run: all that it will do, in minutes, on two layers of its model, on the machine at hand.

Config, data, tokenizer, template and disk are the run's own, and so is every part that works: the checks of its start,
then `training.run.train` itself in a process that is killed after step 2, and once more, which resumes, makes the last
step, validates, exports and reads the export back. All weights are read, though two layers are trained. Nothing is
written to the run's folder; what the rehearsal writes is beside it and goes when it ends, but for its report:

    <runs>/<name>.rehearsal.json
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from logtrain.core.atomic import write_file
from logtrain.core.batch import Batch
from logtrain.core.checksums import check_folder
from logtrain.core.lock import Lock
from logtrain.core.run_folder import check_begun
from logtrain.core.shared_folder import listing, wait_until_seen
from logtrain.core.still import Still
from logtrain.core.world import World
from logtrain.generation.load import ModelFolder
from logtrain.model import hf
from logtrain.model.llama import LlamaConfig
from logtrain.model.published import check_source
from logtrain.observe.prometheus import Prometheus
from logtrain.observe.run_files import read_run
from logtrain.observe.trackers import check_trackers
from logtrain.readiness import disk, foretold, machine, place, weights
from logtrain.readiness.checkpoints import check_resumable
from logtrain.readiness.process import Trial, Work, checkpoint_of, environment_of, until
from logtrain.readiness.stages import Stages
from logtrain.training.checks import check_torch
from logtrain.training.config import RunConfig
from logtrain.training.run import train
from logtrain.training.run_data import OpenedSplits, open_splits

STEPS, KILLED_AT = 3, 2
MACHINE, OUTPUT, MODEL, DATA, RESUME = "machine", "output", "model", "data", "resume"
SLICE, SHARED, TRAINED = "two layers", "shared folder", "steps and a kill"
EXPORTED, ANSWERS, PLAN = "resume and export", "reload", "plan"


def rehearse(config: RunConfig, say: Callable[[str], None] = print, work: Work = train) -> int:
    """Rehearse a run; -> exit status 0. Every rank calls this. `say`: what rank 0 does with a line. `work`: what
    trains.

    Raises ValueError where something failed, after all was said.
    """
    config = replace(config.with_absolute_paths(), rehearse=False)
    with Still():
        world = World(on_cpu=True, timeout=0.0)
        began = time.time()
        with contextlib.ExitStack() as stack:
            stages = Stages(world, say)
            rehearsal = Rehearsal(config, world, stages, work)
            stack.callback(rehearsal.clear)
            rehearsal.run()
        report = Path(config.runs) / f"{config.name}.rehearsal.json"
        content = {"time": began, "seconds": time.time() - began, "ranks": world.size, "run": config.name}
        content |= {"passed": not stages.problems, "stages": stages.to_json(), **rehearsal.figures}
        if world.is_main and rehearsal.lock is not None:
            write_file(report, orjson.dumps(content, option=orjson.OPT_INDENT_2))
            say(f"report in {report}")
        world.close()
    if count := len(stages.problems):
        raise ValueError(f"rehearsal: {count} {'thing' if count == 1 else 'things'} would fail, as said above")
    return 0


class Rehearsal:
    """The rehearsal of one run, stage by stage. Every rank makes one."""

    def __init__(self, config: RunConfig, world: World, stages: Stages, work: Work):
        """`config`: the run's own, with absolute paths."""
        self.config, self.world, self.stages, self.work = config, world, stages, work
        self.folder = Path(config.runs) / config.name
        self.scratch = Path(config.runs) / f".{config.name}.rehearsal"
        self.small = self.scratch / "model"
        self.local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.gpus = torch.cuda.device_count()
        self.lock: Lock | None = None
        self.predicting: Any = foretold.NO_GPU
        self.trial: Trial | None = None
        self.figures: dict[str, Any] = {}
        self.shape: LlamaConfig | None = None
        self.opened: OpenedSplits | None = None
        self.weights: hf.Weights | None = None
        self.steps_per_epoch = 0

    def run(self) -> None:
        """All stages in order."""
        attempt, config = self.stages.attempt, self.config
        attempt(MODEL, self.model)
        attempt(DATA, self.data, [MODEL])
        attempt(MACHINE, self.machine, [MODEL])
        attempt(OUTPUT, self.on_main(self.output))
        ready = [MODEL, DATA, MACHINE, OUTPUT]
        if self.world.from_main(config.resume == "auto" and self.folder.is_dir()):
            attempt(RESUME, self.on_main(self.resume), [MODEL, DATA, OUTPUT])
            ready.append(RESUME)
        if self.world.is_main and self.lock is not None:
            self.predicting = foretold.plan_process(config, self.scratch, self.world.size)
        if attempt(SLICE, self.on_main(self.write_slice), ready) and self.world.size > 1:
            files = self.world.from_main(listing(self.small) if self.world.is_main else None)
            attempt(SHARED, partial(self.shared, files))
        attempt(TRAINED, partial(self.steps_and_a_kill, environment_of(self.world)), [SLICE, *self.shared_by_all()])
        attempt(EXPORTED, partial(self.resumed, environment_of(self.world)), [TRAINED])
        attempt(ANSWERS, self.on_main(self.reloaded), [EXPORTED])
        attempt(PLAN, self.on_main(self.plan))

    def clear(self) -> None:
        """End the process under way, and remove what was written."""
        if self.trial is not None:
            self.trial.kill()
        if not isinstance(self.predicting, str):
            self.predicting.kill()
        if self.lock is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.lock.close()

    def on_main(self, work: Callable[[], Sequence[str]]) -> Callable[[], Sequence[str]]:
        """Work that rank 0 alone does."""
        return work if self.world.is_main else lambda: ()

    # ---- what is there

    def model(self) -> Sequence[str]:
        """The model's files: whole, of one shape, finite in all layers."""
        config, world = self.config, self.world
        if world.local_rank == 0:
            check_folder(Path(config.model), world.note)
        shape = hf.read_config(config.model)
        check_source(Path(config.model), shape)
        self.figures["parameters"] = shape.num_parameters
        lines = ["starts from random weights"]
        if config.init == "pretrained":
            self.weights = hf.Weights(config.model, shape)
            lines = [weights.check_all(self.weights, (world.rank, world.size), world.note)]
        self.shape = shape
        return [f"{Path(config.model).name}: {shape.num_parameters:,} parameters, {shape.num_layers} layers", *lines]

    def data(self) -> Sequence[str]:
        """The prepared folders: every byte, their tokenizer and template, and that there is something to predict."""
        assert self.shape is not None
        self.opened = opened = open_splits(self.config, self.shape, self.world)
        splits = {**{name or "train": split for name, split in opened.sources.items()}, **opened.valid}
        for split in splits.values():
            if not split.manifest["splits"][split.name]["targets"]:
                raise ValueError(
                    f"{split.folder}: nothing is to be predicted in its split {split.name}; prepare it again"
                )
        told = ", ".join(f"{name} {split.num_documents:,} documents" for name, split in splits.items())
        return [f"all checksums hold: {told}"]

    def machine(self) -> Sequence[str]:
        """Versions, trackers, ports, shared memory and memory of this machine."""
        config, local = self.config, self.local_ranks
        assert self.shape is not None
        check_torch(config)
        check_trackers(config.track)
        if self.world.is_main and config.prometheus:
            Prometheus(config.prometheus, config.name).close()
        documents = sum(split.num_documents for split in self.opened.sources.values()) if self.opened else 0
        lines = [machine.check_shared_memory(local if self.gpus else 0), machine.check_temporary(local, documents)]
        share = machine.bytes_of_state(config, self.shape) / (config.parallel.shard_ranks or self.world.size)
        if not self.gpus:
            have, where = machine.memory_of_machine(), "on this machine"
            lines.append(machine.check_memory(share * local, have, where))
        return ["; ".join(lines)]

    def output(self) -> Sequence[str]:
        """The place of the run: free or to be resumed, writable, fast, with room."""
        config, runs = self.config, Path(self.config.runs)
        place.check_free(self.folder, config.resume == "auto")
        self.lock = place.take(self.scratch)
        needs = None
        if self.shape is not None and self.opened is not None:
            stored = 0 if self.weights is None else weights.widest(self.weights).itemsize
            needs = place.Needs(config, self.shape, self.world.size, self.gpus > 0, stored)
            place.check_room(runs, needs, self.opened)
        rates = disk.measure(self.scratch, self.world.note)
        self.figures["disk"] = rates._asdict()
        return [f"{runs}: {rates}", *(place.told(runs, needs, rates) if needs else ())]

    def resume(self) -> Sequence[str]:
        """The checkpoint that the run goes on from."""
        assert self.shape is not None and self.opened is not None
        if not check_begun(self.folder, True):
            return ["starts anew"]
        return [check_resumable(self.folder, self.config, self.shape, self.opened.fingerprint)]

    # ---- two layers of it

    def write_slice(self) -> Sequence[str]:
        """The model of the rehearsal."""
        assert self.shape is not None and self.opened is not None
        of_model = Path(self.config.model), self.shape, self.weights, self.opened.tokenizer
        small = weights.write_slice(self.small, *of_model)
        return [f"{small.num_layers} of {self.shape.num_layers} layers, {small.num_parameters:,} parameters"]

    def of_slice(self, resume: bool) -> RunConfig:
        """The run's config, but for the model, three steps and the place."""
        steps = {"epochs": max(STEPS, self.config.trainer.epochs), "max_steps": STEPS, "log_every": 1, "patience": 0}
        steps |= {"valid_every": STEPS, "save_every": KILLED_AT, "keep": 2, "stop_after": 0, "max_skipped": 1}
        steps |= {"save_last": False}  # the checkpoint of step 2 has shown that
        return replace(
            self.config,
            name="run",
            runs=str(self.scratch),
            model=str(self.small),
            resume="auto" if resume else "none",
            trainer=replace(self.config.trainer, **steps),
            track=(),
            prometheus=0,
        )

    def shared(self, files: dict[str, int]) -> Sequence[str]:
        """Whether this machine sees what rank 0 has written."""
        wait_until_seen(self.small, files, self.world.note)
        return ["every rank sees it"]

    def shared_by_all(self) -> list[str]:
        """What the steps need of the ranks."""
        return [SHARED] if self.world.size > 1 else []

    def begin(self, environment: dict[str, str], *, resume: bool) -> Trial:
        """The process of the run."""
        output = self.scratch / f"rank-{self.world.rank:05d}-{'resumed' if resume else 'first'}.txt"
        hold_at = 0 if resume else KILLED_AT
        self.trial = Trial(self.of_slice(resume), output, environment, self.work, hold_at)
        return self.trial

    def steps_and_a_kill(self, environment: dict[str, str]) -> Sequence[str]:
        """The run until its checkpoint of step 2 is there, when it is killed."""
        trial, run = self.begin(environment, resume=False), self.scratch / "run"
        try:
            until(self.world, trial, "the first steps", checkpoint_of(run, KILLED_AT).exists)
        finally:
            trial.kill()
        return [f"killed by SIGKILL once the checkpoint of step {KILLED_AT} was there"]

    def resumed(self, environment: dict[str, str]) -> Sequence[str]:
        """The run from that checkpoint to its export."""
        trial, run = self.begin(environment, resume=True), self.scratch / "run"
        try:
            until(self.world, trial, "resuming", lambda: False)
        finally:
            trial.kill()
        if not self.world.is_main:
            return []
        files = read_run(run)
        if [record.get("step") for record in files.steps] != [*range(1, STEPS + 1)]:
            raise ValueError(f"{self.config.name}: the records of the killed and resumed run are not of steps 1 to 3")
        self.steps_per_epoch = round(STEPS / files.last["epoch"])
        losses = " ".join(f"{record['loss']:.4f}" for record in files.steps)
        sets = ", ".join(f"{name} {records[-1]['valid_loss']:.4f}" for name, records in files.validations.items())
        proof = files.export
        self.figures |= {
            "step_seconds": files.last.get("step_seconds"),
            "memory_gib": files.last.get("peak_memory_gib"),
        }
        return [
            f"went on after step {KILLED_AT}: losses {losses}; held out: {sets or 'nothing'}",
            f"export ({proof.get('dtype')}) read back: loss differs by {proof.get('difference', 0):+.1e}",
        ]

    def reloaded(self) -> Sequence[str]:
        """The export as chat and evaluation load it."""
        folder = ModelFolder(self.scratch / "run" / ("export" if self.config.export_merged else "adapter"))
        model = folder.load(torch.device("cpu")).model
        assert self.opened is not None
        split = next(iter(self.opened.sources.values()))
        ids = torch.from_numpy(split.read(0, 0, min(16, int(split.lengths[0]))).astype(np.int64) & 0x7FFFFFFF)
        positions, bounds = torch.arange(len(ids), dtype=torch.int32), torch.tensor([0, len(ids)]).int()
        with torch.no_grad():
            if not model(Batch(ids, None, positions, bounds, len(ids))).isfinite().all():
                raise ValueError(f"{folder.path}: answers with numbers that are not finite")
        return [f"the export answers: {folder.summary(torch.device('cpu')).partition(': ')[2]}"]

    def plan(self) -> Sequence[str]:
        """The figures of the whole run, as far as they can be told."""
        lines, self.figures["plan"] = foretold.told_by(self.predicting)
        if each := self.steps_per_epoch:
            lines.append(f"{self.config.trainer.total_steps(each):,} steps; an epoch has {each:,}")
        return lines
