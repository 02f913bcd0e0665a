"""Our own training step on the clock: `python -m benchmarks.step.logtrain_worker RECIPE_AS_JSON`."""

import json
import sys
from pathlib import Path

import torch

from benchmarks.step.recipe import Clock, Recipe
from logtrain.core.world import World
from logtrain.model import hf
from logtrain.observe.system import peak_memory_gib
from logtrain.training.config import ParallelConfig, RunConfig
from logtrain.training.optim import make_optimizer
from logtrain.training.optim_config import OptimConfig
from logtrain.training.sharding import build_model, make_mesh
from logtrain.training.step import TrainStep


def main(recipe: Recipe) -> None:
    torch.set_num_threads(recipe.threads)
    world, run, folder = World(), RunConfig(name="", model=recipe.model, data=""), Path(recipe.model)
    loader, shape = recipe.loader(rows_per_batch=recipe.rows), hf.read_config(folder)
    optim = OptimConfig(lr=recipe.lr, schedule="constant", warmup_ratio=0.0, weight_decay=0.0)
    before = peak_memory_gib(world.device)
    mesh = make_mesh("cpu", world.size, ParallelConfig())
    model = build_model(run, shape, mesh, torch.float32, hf.Weights(folder, shape))
    train_step = TrainStep(model, make_optimizer(model, optim), optim, run.trainer.max_grad_norm, recipe.steps, world)
    clock, losses = Clock(), []
    steps = iter(loader)
    for number in range(recipe.steps):
        step = next(steps)
        losses.append(train_step(step, number).summed_loss.item() / step.targets)
        clock.step_ended()
    memory = peak_memory_gib(world.device) - before
    print(json.dumps(clock.measured(recipe, memory, losses)))


if __name__ == "__main__":
    main(Recipe.from_json(sys.argv[1]))
