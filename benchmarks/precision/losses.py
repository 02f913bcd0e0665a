"""What a recipe costs in loss: the same steps from the same weights in each precision, and the held-out loss of what
they leave.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn

from benchmarks.precision.variant import Job
from logtrain.model.float8 import Float8Block, Float8Linear
from logtrain.model.llama import Block
from logtrain.training.optim import make_optimizer
from logtrain.training.step import TrainStep, validate

T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}  # Student's t, two-sided


@contextmanager
def weights_as_they_are() -> Iterator[None]:
    """Meanwhile models compute as they would be exported: nothing of them is cast to float8."""
    block, linear = (Float8Block, "forward", Block.compute), (Float8Linear, "forward", nn.Linear.forward)
    with patch.object(*block), patch.object(*linear):
        yield


def train_once(job: Job, variant: str, seed: int, lr: float, valid_steps: int) -> dict[str, Any]:
    """One run; -> its losses, of every step and held out: before, after, and after in its own precision."""
    started = time.process_time()
    with job.run(variant, seed, lr) as (setup, model):
        (valid,) = setup.data.valid.values()
        steps = min(valid_steps, valid.steps_per_epoch)

        def held_out() -> float:
            return validate(model, valid, steps, setup.world).loss

        optim = setup.config.optim
        step = TrainStep(
            model, make_optimizer(model, optim), optim, setup.config.trainer.max_grad_norm, job.steps, setup.world
        )
        with weights_as_they_are():
            before = held_out()
        losses, skipped = [], 0.0
        for number in range(job.steps):
            taken = setup.data.train.at(number)
            result = step(taken, number)
            losses.append(result.summed_loss.item() / taken.targets)
            skipped += result.skipped.item()
        own = held_out()
        with weights_as_they_are():
            after = held_out()
    return {
        "variant": variant, "seed": seed, "lr": lr, "steps": job.steps, "rows": job.rows, "seq_len": job.seq_len,
        "losses": losses, "before": before, "after": after, "after_in_own_precision": own, "skipped": skipped,
        "cpu_seconds": time.process_time() - started,
    }  # fmt: skip


def gaps(runs: list[dict[str, Any]], reference: str) -> Iterator[dict[str, Any]]:
    """For each rate and variant: how much more held-out loss than the reference, over seeds, with a 95% interval."""
    of = {(run["lr"], run["variant"], run["seed"]): run for run in runs}
    for lr, variant in dict.fromkeys((run["lr"], run["variant"]) for run in runs if run["variant"] != reference):
        seeds = [seed for rate, name, seed in of if (rate, name) == (lr, variant) and (lr, reference, seed) in of]
        pairs = [(of[lr, variant, seed], of[lr, reference, seed]) for seed in seeds]
        found = [mine["after"] - theirs["after"] for mine, theirs in pairs]
        if not found:
            continue
        mean, half = mean_and_half(found)
        gained = sum(theirs["before"] - theirs["after"] for _, theirs in pairs) / len(pairs)
        spread = mean_and_half([theirs["after"] for _, theirs in pairs])[1]
        yield {
            "lr": lr, "variant": variant, "seeds": len(seeds), "steps": pairs[0][0]["steps"], "gap": mean,
            "half": half, "gained": gained, "half_of_reference": spread,
        }  # fmt: skip


def mean_and_half(values: list[float]) -> tuple[float, float]:
    """Their mean, and half of its 95% interval by Student's t: infinite for one value."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return mean, math.inf
    deviation = (sum((value - mean) ** 2 for value in values) / (count - 1)) ** 0.5
    return mean, T_95.get(count - 1, 2.0) * deviation / count**0.5


class Kept:
    """The results that are there, a JSON object a line; a run that is there is not done again."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.runs = [json.loads(line) for line in lines]

    def has(self, **facts: Any) -> bool:
        """Whether there is a result with these facts."""
        return any(facts.items() <= run.items() for run in self.runs)

    def add(self, result: dict[str, Any]) -> None:
        """Keep a result, on disk before anything else is done."""
        self.runs.append(result)
        with self.path.open("a") as file:
            file.write(json.dumps(result) + "\n")
            file.flush()
            os.fsync(file.fileno())
