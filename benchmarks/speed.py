"""How fast a recipe's step runs on the machine at hand, to hold against `python -m logtrain.plan`; rank 0 prints JSON.

    torchrun --nproc_per_node 8 -m benchmarks.speed launch/recipes/cpt_8xh100.toml --model DIR --data DIR [--trace FILE]

The job is built as logtrain.cpt builds it; steps are run without checkpoints, validation or records: two to warm up,
three on the clock, and with --trace one more, whose torch.profiler trace (chrome://tracing, Perfetto) rank 0 writes.
"""

import json
import time
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from benchmarks.weights import DeviceWeights
from logtrain.core import entry
from logtrain.core.config import load
from logtrain.core.world import World
from logtrain.data.loader import Step
from logtrain.model.flops import model_flops, peak_flops
from logtrain.model.weights import WeightSource
from logtrain.observe.system import peak_memory_gib
from logtrain.training.config import RunConfig
from logtrain.training.optim import make_optimizer
from logtrain.training.setup import RunSetup, set_up
from logtrain.training.step import TrainStep

WARM, TIMED = 2, 3


class Speed(TypedDict):
    """What is measured."""

    gpus: int
    """processes, where there is no GPU"""
    device: str
    """the GPU's name, or cpu"""
    tokens_per_second_per_gpu: float
    step_seconds: float
    """median"""
    peak_memory_gib: float
    mfu_causal: float | None
    """share of the GPU's peak FLOP/s, of pairs that the mask lets through; None where the peak is not known"""
    loss_finite: bool


@dataclass(frozen=True, kw_only=True)
class SpeedConfig(RunConfig):
    """Time the steps of a training job."""

    name: str = "speed"
    trace: str = ""
    """File for a profile of one step after those on the clock."""


def main(argv: list[str]) -> int:
    config = load(SpeedConfig, argv)
    run = set_up(config)
    model = run.build_model(weights_of(run))
    optimizer, num_steps = make_optimizer(model, config.optim), WARM + TIMED + 1
    train_step = TrainStep(model, optimizer, config.optim, config.trainer.max_grad_norm, num_steps, run.world)
    *steps, profiled = [run.data.train.at(number) for number in range(num_steps)]
    seconds, loss = time_steps(train_step, steps, run.world)
    if config.trace:
        loss = profile_step(train_step, profiled, run.world, config.trace)
    if run.world.is_main:
        print(json.dumps(speed(run, steps[WARM:], seconds, loss)), flush=True)
    run.world.close()
    return 0


def weights_of(run: RunSetup) -> WeightSource:
    """What the run starts from, random weights drawn on its device."""
    if run.config.init == "pretrained" or run.config.lora.rank:
        return run.initial_weights()
    return DeviceWeights(run.shape, run.world.device, run.config.seed)


def time_steps(train_step: TrainStep, steps: list[Step], world: World) -> tuple[list[float], Tensor]:
    """(seconds of each step after the first WARM, the last one's summed loss)"""
    for number, step in enumerate(steps[:WARM]):
        train_step(step, number)
    world.wait_for_device()
    world.barrier()
    seconds, loss = [], torch.zeros(())
    for number, step in enumerate(steps[WARM:], WARM):
        began = time.perf_counter()
        loss = train_step(step, number).summed_loss
        world.wait_for_device()
        seconds.append(time.perf_counter() - began)
    return seconds, loss


def profile_step(train_step: TrainStep, step: Step, world: World, path: str) -> Tensor:
    """The summed loss of a step after the timed ones, whose profile rank 0 writes to `path`."""
    with torch.profiler.profile() as profile:
        loss = train_step(step, WARM + TIMED).summed_loss
        world.wait_for_device()
    if world.is_main:
        profile.export_chrome_trace(path)
    return loss


def speed(run: RunSetup, steps: list[Step], seconds: list[float], loss: Tensor) -> Speed:
    """The figures of timed steps, and whether the loss of the last step is finite."""
    world, tokens = run.world, sum(step.tokens for step in steps)
    flops = model_flops(run.shape, tokens, sum(step.attention_pairs for step in steps))
    peak = peak_flops(world.device)
    return {
        "gpus": world.size,
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "tokens_per_second_per_gpu": tokens / sum(seconds) / world.size,
        "step_seconds": sorted(seconds)[TIMED // 2],
        "peak_memory_gib": peak_memory_gib(world.device),
        "mfu_causal": flops / sum(seconds) / world.size / peak if peak else None,
        "loss_finite": bool(torch.isfinite(loss)),
    }


if __name__ == "__main__":
    entry.run(main)
