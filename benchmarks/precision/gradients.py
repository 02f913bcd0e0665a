"""What casts do to gradients, layer by layer, beside what the choice of a step's rows does to them.

For a micro-batch i, g_i is a tensor's gradient in fp32 and e_i what a recipe's differs by. Over k micro-batches, of
which all are a sample:

    signal^2 = |E g|^2        noise^2 = E |g - E g|^2        error^2 = E |e|^2        bias^2 = |E e|^2

each estimated without bias. The sum of n micro-batches has n times the signal and sqrt(n) times the noise and the part
of the error that is none of its mean, so error^2 / noise^2 is by how much a recipe raises the variance of a step's
gradient, whatever the size of the step.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.precision.variant import REFERENCE, Job
from logtrain.model.llama import Llama
from logtrain.training.setup import RunSetup


class Sums(NamedTuple):
    """Of one tensor over the micro-batches: the sum of its gradients, of their squared norms."""

    total: Tensor
    squares: float

    def added(self, g: Tensor) -> "Sums":
        """With one gradient more."""
        return Sums(self.total.add_(g), self.squares + g.double().square().sum().item())

    def moments(self, count: int) -> tuple[float, float]:
        """(|E g|^2, E |g - E g|^2) of `count` samples, both estimated without bias."""
        of_mean = self.total.double().square().sum().item() / count**2
        spread = (self.squares - count * of_mean) / (count - 1)
        return of_mean - spread / count, spread


def layer_of(name: str) -> str | None:
    """3 qkv for blocks.3.attention.qkv.weight; None for what is no matrix of a block."""
    parts = name.split(".")
    return f"{parts[1]} {parts[3]}" if parts[0] == "blocks" and len(parts) == 5 else None


def gradients(setup: RunSetup, model: Llama, count: int) -> Iterator[dict[str, Tensor]]:
    """The gradient of the mean loss of each of the first `count` micro-batches, by layer."""
    batches = (batch for number in range(count) for batch in setup.data.train.at(number).batches)
    for _, batch in zip(range(count), batches, strict=False):
        assert batch.labels_T is not None
        model.zero_grad()
        (model(batch) / max(1, int((batch.labels_T >= 0).sum()))).backward()
        yield {
            layer: p.grad for name, p in model.named_parameters() if (layer := layer_of(name)) and p.grad is not None
        }


def measure_gradients(job: Job, variants: list[str], count: int) -> Iterator[dict[str, str | float]]:
    """A line for each variant and layer, after `count` micro-batches; REFERENCE has the layer's signal and noise."""
    with job.run(REFERENCE) as (setup, model):
        kept = [{layer: g.bfloat16() for layer, g in found.items()} for found in gradients(setup, model, count)]
    exact: dict[str, tuple[float, float]] = {}
    for layer in kept[0]:
        sums = Sums(torch.zeros(kept[0][layer].shape), 0.0)
        for found in kept:
            sums = sums.added(found[layer].float())
        exact[layer] = sums.moments(count)
    for variant in variants:
        errors = {layer: Sums(torch.zeros(g.shape), 0.0) for layer, g in kept[0].items()}
        with job.run(variant) as (setup, model):
            for found, truth in zip(gradients(setup, model, count), kept, strict=True):
                errors = {layer: sums.added(found[layer] - truth[layer].float()) for layer, sums in errors.items()}
        for layer, sums in errors.items():
            bias, _ = sums.moments(count)
            signal, noise = exact[layer]
            yield {
                "variant": variant,
                "layer": layer,
                "signal": max(signal, 0.0) ** 0.5,
                "noise": noise**0.5,
                "error": (sums.squares / count) ** 0.5,
                "bias": max(bias, 0.0) ** 0.5,
                "micro_batches": count,
            }
