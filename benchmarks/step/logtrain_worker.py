"""Our own training step on the clock.

usage: python -m benchmarks.step.logtrain_worker MODEL_FOLDER document|row
"""

import json
import sys
from pathlib import Path

import torch

from benchmarks.step.recipe import LR, ROWS, SEQ_LEN, STEPS, Attention, Clock, Documents, Measurement, attention_of
from logtrain.core.world import World
from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader
from logtrain.model import hf
from logtrain.observe.system import peak_memory_gib
from logtrain.training.config import OptimConfig, ParallelConfig, RunConfig
from logtrain.training.optim import make_optimizer
from logtrain.training.sharding import build_model, make_mesh
from logtrain.training.step import TrainStep


def main(folder: Path, attention: Attention) -> None:
    torch.set_num_threads(2)
    world, run = World(), RunConfig(name="", model=str(folder), data="")
    config = LoaderConfig(seq_len=SEQ_LEN, rows_per_step=ROWS, rows_per_batch=ROWS, attention=attention)
    loader = Loader(Documents(), config, seed=0, pad_id=0)
    shape = hf.read_config(folder)
    optim = OptimConfig(lr=LR, schedule="constant", warmup_ratio=0.0, weight_decay=0.0)
    before = peak_memory_gib(world.device)
    mesh = make_mesh("cpu", world.size, ParallelConfig())
    model = build_model(run, shape, mesh, torch.float32, hf.Weights(folder, shape))
    train_step = TrainStep(model, make_optimizer(model, optim), optim, run.trainer.max_grad_norm, STEPS, world)
    clock, losses = Clock(), []
    steps = iter(loader)
    for number in range(STEPS):
        step = next(steps)
        losses.append(train_step(step, number).summed_loss.item() / step.targets)
        clock.step_ended()
    memory = peak_memory_gib(world.device) - before
    measured: Measurement = {"tokens_per_second": clock.tokens_per_second(), "memory_gib": memory, "losses": losses}
    print(json.dumps(measured))


if __name__ == "__main__":
    main(Path(sys.argv[1]), attention_of(sys.argv[2]))
