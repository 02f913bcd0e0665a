"""How fast a recipe's step runs on the machine at hand, to hold against `python -m logtrain.plan`; rank 0 prints JSON.

    torchrun --nproc_per_node 8 -m benchmarks.speed launch/recipes/cpt_8xh100.toml --model DIR --data DIR [--trace FILE]

The job is built as logtrain.cpt builds it; steps are run without checkpoints, validation or records: two to warm up,
three on the clock, and with --trace one more whose torch.profiler trace (chrome://tracing, Perfetto) rank 0 writes.
"""

import json
import time
from dataclasses import dataclass

import torch

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.model.flops import model_flops, peak_flops
from logtrain.observe.system import peak_memory_gib
from logtrain.training.config import RunConfig
from logtrain.training.optim import make_optimizer
from logtrain.training.setup import set_up
from logtrain.training.step import TrainStep

WARM, TIMED = 2, 3


@dataclass(frozen=True, kw_only=True)
class SpeedConfig(RunConfig):
    """Time the steps of a training job."""

    name: str = "speed"
    trace: str = ""
    """File for a profile of one more step."""


def main(argv: list[str]) -> int:
    config = load(SpeedConfig, argv)
    job = set_up(config)
    world, loader = job.world, job.data.train
    model = job.build_model(job.initial_weights())
    optimizer = make_optimizer(model, config.optim)
    train_step = TrainStep(model, optimizer, config.optim, config.trainer.max_grad_norm, WARM + TIMED + 1, world)
    steps = [loader.at(number) for number in range(WARM + TIMED + 1)]
    for number, step in enumerate(steps[:WARM]):
        train_step(step, number)
    world.wait_for_device()
    world.barrier()
    seconds = []
    for number, step in enumerate(steps[WARM:-1], WARM):
        began = time.perf_counter()
        result = train_step(step, number)
        world.wait_for_device()
        seconds.append(time.perf_counter() - began)
    if config.trace:
        with torch.profiler.profile() as profile:
            result = train_step(steps[-1], WARM + TIMED)
            world.wait_for_device()
        if world.is_main:
            profile.export_chrome_trace(config.trace)
    if world.is_main:
        tokens = sum(step.tokens for step in steps[WARM:-1])
        flops = model_flops(job.shape, tokens, sum(step.attention_pairs for step in steps[WARM:-1]))
        peak = peak_flops(world.device)
        measured = {
            "gpus": world.size,
            "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
            "tokens_per_second_per_gpu": tokens / sum(seconds) / world.size,
            "step_seconds": sorted(seconds)[TIMED // 2],
            "peak_memory_gib": peak_memory_gib(world.device),
            "mfu_causal": flops / sum(seconds) / world.size / peak if peak else None,
            "loss_finite": bool(torch.isfinite(result.summed_loss)),
        }
        print(json.dumps(measured), flush=True)
    world.close()
    return 0


if __name__ == "__main__":
    run(main)
