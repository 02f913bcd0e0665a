"""Runs of the training program in this process, for tests: the whole of it, from flags to exit status, or one step."""

import importlib
import json
from pathlib import Path

import torch

from logtrain import cpt
from logtrain.core.config import load
from logtrain.training.job import Job
from logtrain.training.sharding import full_tensors
from logtrain.training.trainer import Trainer


def train(flags: list[str], entry: str = "logtrain.cpt") -> int:
    """`python -m logtrain.cpt FLAGS`, or another entry, without the process; -> exit status."""
    try:
        return importlib.import_module(entry).main(flags)
    finally:
        if torch.distributed.is_initialized():  # an error leaves it to the end of the process
            torch.distributed.destroy_process_group()


def first_gradients(flags: list[str]) -> dict[str, torch.Tensor]:
    """What the first step of a run hands to the optimizer: our names, whole tensors."""
    job = Job(load(cpt.CptConfig, flags))
    model = job.build(job.initial_rows())
    found = {}

    class Recorder:
        param_groups = ()

        def step(self):
            for parameter in model.parameters():
                parameter.data.copy_(parameter.grad)
            found.update((name, full.detach()) for name, full in full_tensors(model))

        def zero_grad(self):
            pass

    trainer = Trainer(
        job.config.trainer,
        model=model,
        optimizer=Recorder(),
        optim=job.config.optim,
        train=job.loader(job.train_split, job.config.loader.rows_per_step),
        valid={},
        world=job.world,
        checkpoints=None,
        metrics=None,
        state=job.first_state(),
    )
    trainer.train_step(trainer.train.at(0))
    job.world.close()
    return found


def records(run: Path, kind: str = "loss") -> list[dict]:
    """The logged steps of a run; kind = "valid_loss" for its validations."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if kind in record]
