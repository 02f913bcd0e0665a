"""How fast a recipe's step runs on the machine at hand, to hold against `python -m logtrain.plan`; rank 0 prints JSON.

    torchrun --nproc_per_node 8 -m benchmarks.speed launch/recipes/cpt_8xh100.toml --model DIR --data DIR [--trace FILE]

The job is built as logtrain.cpt builds it; steps are run without checkpoints, validation or records: two to warm up,
three on the clock, and with --trace one more whose torch.profiler trace (chrome://tracing, Perfetto) rank 0 writes.
"""

import json
import time
from dataclasses import dataclass

import torch

from logtrain.core.config import load, run
from logtrain.observe.metrics import model_flops, peak_flops, peak_memory_gib
from logtrain.training.job import Job, JobConfig
from logtrain.training.optim import adamw
from logtrain.training.trainer import Trainer

WARM, TIMED = 2, 3


@dataclass(frozen=True, kw_only=True)
class SpeedConfig(JobConfig):
    """Time the steps of a training job."""

    name: str = "speed"
    trace: str = ""
    """File for a profile of one more step."""


def main(argv: list[str]) -> int:
    config = load(SpeedConfig, argv)
    job = Job(config)
    world = job.world
    model = job.build(job.initial_rows())
    loader = job.loader(job.train_split, job.rows_per_step())
    trainer = Trainer(
        config.trainer,
        model=model,
        optimizer=adamw(model, config.optim),
        optim=config.optim,
        train=loader,
        valid={},
        world=world,
        checkpoints=None,
        metrics=None,
        state=job.first_state(),
    )
    steps = [loader.at(number) for number in range(WARM + TIMED + 1)]
    for step in steps[:WARM]:
        trainer.train_step(step)
    world.wait_for_device()
    torch.distributed.barrier(world.control)
    seconds = []
    for step in steps[WARM:-1]:
        began = time.perf_counter()
        trainer.train_step(step)
        world.wait_for_device()
        seconds.append(time.perf_counter() - began)
    if config.trace:
        with torch.profiler.profile() as profile:
            trainer.train_step(steps[-1])
            world.wait_for_device()
        if world.is_main:
            profile.export_chrome_trace(config.trace)
    if world.is_main:
        tokens = sum(step.tokens for step in steps[WARM:-1])
        flops = model_flops(job.llama, tokens, sum(step.attention_pairs for step in steps[WARM:-1]))
        peak = peak_flops(world.device)
        result = {
            "gpus": world.size,
            "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
            "tokens_per_second_per_gpu": tokens / sum(seconds) / world.size,
            "step_seconds": sorted(seconds)[TIMED // 2],
            "peak_memory_gib": peak_memory_gib(world.device),
            "mfu_causal": flops / sum(seconds) / world.size / peak if peak else None,
            "loss_finite": bool(torch.isfinite(trainer.loss)),
        }
        print(json.dumps(result), flush=True)
    world.close()
    return 0


if __name__ == "__main__":
    run(main)
