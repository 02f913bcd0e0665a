"""What a run trains and how far it is, new or as it was saved: checkpoints, model, optimizer, counts, step."""

from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from logtrain.core.stop import StopSignal
from logtrain.model.llama import Llama
from logtrain.model.weights import WeightSource
from logtrain.observe.goodput import Goodput
from logtrain.observe.live_report import LiveReport
from logtrain.observe.metrics import Metrics
from logtrain.training.checkpoint import Checkpoints
from logtrain.training.checks import check_space
from logtrain.training.forgetting import Forgetting
from logtrain.training.objective import objective_of
from logtrain.training.optim import make_optimizer
from logtrain.training.reference import give_references
from logtrain.training.setup import RunSetup
from logtrain.training.state import TrainState
from logtrain.training.step import TrainStep
from logtrain.training.trainer import Trainer


@dataclass(frozen=True)
class Parts:
    """The parts of a run that training changes."""

    checkpoints: Checkpoints
    """The folder that steps are saved to."""
    state: TrainState
    """The counts of the run, which the trainer keeps up to date."""
    train_step: TrainStep
    """Forward, backward and update."""
    told: list[str]
    """What a user is to know of how these were built, in lines."""

    @property
    def model(self) -> Llama:
        """The sharded model."""
        return self.train_step.model

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the parameters that are trained."""
        return self.train_step.optimizer

    @property
    def total_steps(self) -> int:
        """The steps of the whole run."""
        return self.train_step.total_steps

    def resumed(self) -> dict[str, Any]:
        """How far the records of the run go that belong to the saved step, as `Metrics` takes it."""
        state = self.state
        return {"resume_step": state.step, "crc32": state.records_crc32, "validates": state.validation_due}

    def trainer(
        self,
        run: RunSetup,
        stop: StopSignal,
        metrics: Metrics,
        goodput: Goodput,
        report: LiveReport,
        forgetting: Forgetting,
    ) -> Trainer:
        """The loop over these parts."""
        return Trainer(
            run.config.trainer,
            train_step=self.train_step,
            train=run.data.train,
            valid=run.data.valid,
            world=run.world,
            checkpoints=self.checkpoints,
            metrics=metrics,
            state=self.state,
            stop=stop,
            goodput=goodput,
            report=report,
            health=run.config.health,
            forgetting=forgetting,
        )


def build_parts(run: RunSetup, weights: WeightSource) -> Parts:
    """The parts of a run: as its newest checkpoint has them, else new, from these weights. Raises ValueError for a
    checkpoint that is damaged or does not go with the run, and for a disk without room for the next.
    """
    config, world = run.config, run.world
    checkpoints = open_checkpoints(run)
    newest = checkpoints.newest()
    is_in_checkpoint = newest is not None and not config.lora.rank  # frozen weights are in none
    model = run.build_model(None if is_in_checkpoint else weights)
    world.barrier()  # disks differ; NCCL's clock must not start before all have loaded
    optimizer = make_optimizer(model, config.optim)
    state, told = new_state(run), list[str]()
    if newest:
        sources = " ".join(config.sources.values())
        state = checkpoints.load(newest, model, optimizer).continued_as(state, newest, sources)
        told.append(f"resumed from {newest}")
    best_step = state.best_step
    if state.judge_by(run.data.first_valid_set):
        told.append(
            f"the first validation set is another one than when step {best_step} was the best: the best step is "
            "found anew"
        )
    objective = objective_of(config)
    if config.trains_on == "pairs":
        told += give_references(run, model, is_new=state.step == 0)
    total_steps = config.trainer.total_steps(run.data.train.steps_per_epoch)
    train_step = TrainStep(model, optimizer, config.optim, config.trainer.max_grad_norm, total_steps, world, objective)
    return Parts(checkpoints, state, train_step, told)


def open_checkpoints(run: RunSetup) -> Checkpoints:
    """The checkpoints of the run, without what a killed run left half-written. Raises ValueError without room on the
    disk for the next.
    """
    config, world = run.config, run.world
    folder = run.folder / "checkpoints"
    checkpoints = Checkpoints(folder, config.trainer.keep, config.trainer.keep_best, world.note)
    checkpoints.clean()
    if world.is_main:
        steps, present = run.data.train.steps_per_epoch, len(checkpoints.complete())
        check_space(run.folder, config, run.shape, run.export_dtype, steps, present)
    return checkpoints


def new_state(run: RunSetup) -> TrainState:
    """The counts of a run that has not begun."""
    train = run.data.train
    return TrainState(data=run.data.fingerprint, rows_per_step=train.config.rows_per_step, sizes=train.sizes)
