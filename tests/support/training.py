"""Runs of the training program in this process, for tests: the whole of it, from flags to exit status, or one step."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor
from torch.distributed.tensor import DTensor

from logtrain import cpt
from logtrain.core.config import load
from logtrain.training.objective import objective_of
from logtrain.training.setup import set_up
from logtrain.training.sharding import full_tensors
from logtrain.training.step import TrainStep


def train(flags: list[str], entry: str = "logtrain.cpt") -> int:
    """`python -m logtrain.cpt FLAGS`, or another entry, without the process; -> exit status."""
    try:
        return importlib.import_module(entry).main(flags)
    finally:
        if torch.distributed.is_initialized():  # an error leaves it to the end of the process
            torch.distributed.destroy_process_group()


def first_gradients(flags: list[str]) -> dict[str, torch.Tensor]:
    """What the first step of a run hands to the optimizer: our names, whole tensors."""
    run = set_up(load(cpt.CptConfig, flags))
    model = run.build_model(run.initial_weights())
    found = {}

    class Recorder:
        param_groups = ()

        def step(self):
            for parameter in model.parameters():
                if parameter.grad is not None:  # a frozen one stays as it is
                    parameter.data.copy_(parameter.grad)
            found.update((name, full.detach()) for name, full in full_tensors(model))

        def zero_grad(self):
            pass

    config = run.config
    most, objective = config.trainer.max_grad_norm, objective_of(config)
    TrainStep(model, Recorder(), config.optim, most, 1, run.world, objective)(run.data.train.at(0), 0)
    run.world.close()
    return found


def records(run: Path, kind: str = "loss") -> list[dict]:
    """The logged steps of a run; kind = "valid_loss" for its validations."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if kind in record]


def compiled_is_slow(*values: str) -> ParameterSet:
    """Values of a parametrised test, marked as slow where the last names a run that is compiled."""
    return pytest.param(*values, marks=[pytest.mark.slow] if "compiled" in values[-1] else [])


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
