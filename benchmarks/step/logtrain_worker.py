"""One contestant: our own training step. usage: python -m benchmarks.step.logtrain_worker MODEL_FOLDER document|row"""

import json
import sys
from pathlib import Path

import torch

from benchmarks.step.contest import LR, ROWS, SEQ_LEN, STEPS, Clock, Documents
from logtrain.data.loader import Loader, LoaderConfig
from logtrain.model import hf
from logtrain.observe.metrics import Metrics, peak_memory_gib
from logtrain.training.checkpoint import Checkpoints
from logtrain.training.optim import OptimConfig, adamw
from logtrain.training.sharding import ParallelConfig, World, build
from logtrain.training.trainer import Trainer, TrainerConfig


def main(folder: Path, attention: str) -> None:
    torch.set_num_threads(2)
    world, parallel = World(), ParallelConfig()
    config = LoaderConfig(seq_len=SEQ_LEN, rows_per_step=ROWS, rows_per_batch=ROWS, attention=attention)
    loader = Loader(Documents(), config, seed=0, pad_id=0)
    shape = hf.read_config(folder)
    optim = OptimConfig(lr=LR, schedule="constant", warmup_ratio=0.0, weight_decay=0.0)
    before = peak_memory_gib(world.device)
    model = build(shape, world.mesh(parallel), parallel, torch.float32, hf.Weights(folder, shape).rows)
    trainer = Trainer(
        TrainerConfig(max_steps=STEPS),
        model=model,
        optimizer=adamw(model, optim),
        optim=optim,
        train=loader,
        valid={},
        world=world,
        checkpoints=Checkpoints(folder / "checkpoints"),
        metrics=Metrics(folder, enabled=False, total_steps=STEPS),
        state={"step": 0, "tokens": 0, "targets": 0},
    )
    clock, losses = Clock(), []
    steps = iter(loader)
    for _ in range(STEPS):
        step = next(steps)
        trainer.train_step(step)
        losses.append(trainer.loss.item() / step.targets)
        clock.step_ended()
    memory = peak_memory_gib(world.device) - before
    print(json.dumps({"tokens_per_second": clock.tokens_per_second(), "memory_gib": memory, "losses": losses}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
