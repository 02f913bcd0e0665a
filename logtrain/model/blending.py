"""Weight arithmetic: one model's weights of those of several, rows by rows, in fp32.

    average       sum_i w_i W_i / sum_i w_i                (model soups: Wortsman et al. 2022, arXiv:2203.05482)
    interpolate   base + alpha (trained - base)            (WiSE-FT: Wortsman et al. 2021, arXiv:2109.01903)
    residual      cpt + alpha (instruct - base)            (instruction residuals: Jindal et al. 2024, arXiv:2410.10739)
    sum           sum_i w_i s_i B_i A_i, of adapters       (task arithmetic: Ilharco et al. 2022, arXiv:2212.04089)

Every product, sum and difference is rounded to fp32 once, in the order in which it stands here, so the result is that
of the same line of PyTorch bit for bit, however the rows are cut into pieces.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import torch
from torch import Tensor

from logtrain.model.llama import LlamaConfig
from logtrain.model.weights import WeightSource, empty_model

BlendKind = Literal["average", "interpolate", "residual", "sum"]
ROLES: dict[BlendKind, tuple[str, ...]] = {
    "interpolate": ("base", "trained"),
    "residual": ("cpt", "instruct", "base"),
}
"""What the models of a kind are, where their number is fixed."""
PIECE = 1 << 23  # elements that are held of each model at a time, 32 MiB


class MappedWeights(WeightSource, Protocol):
    """Weights in files that are mapped into memory."""

    def let_go(self) -> None:
        """Give back the memory that the files take in this process."""
        ...


@dataclass(frozen=True)
class Blend:
    """What is computed of the weights of several models."""

    kind: BlendKind
    alpha: float = 0.5
    weights: tuple[float, ...] = ()
    """One for each model of an average or a sum; (): all are 1."""

    def check(self, count: int) -> None:
        """Raises ValueError where it cannot be computed of `count` models."""
        roles = ROLES.get(self.kind, ())
        if roles and count != len(roles):
            raise ValueError(f"kind = {self.kind} takes {len(roles)} models, {' '.join(roles).upper()}; {count} given")
        if count < 2:
            raise ValueError(f"kind = {self.kind} takes two models or more; {count} given")
        if self.weights and (roles or len(self.weights) != count):
            rule = "takes alpha, no weights" if roles else f"takes a weight for each of the {count} models"
            raise ValueError(f"weights: {len(self.weights)} given; kind = {self.kind} {rule}")
        if not all(map(math.isfinite, (self.alpha, *self.weights))):
            raise ValueError(f"alpha = {self.alpha}, weights = {self.weights}: expected finite numbers")
        if self.kind == "average" and self.weights and not abs(sum(self.weights)) > 1e-6:
            raise ValueError(f"weights have the sum {sum(self.weights):g}; those of an average are divided by it")

    def factors(self, count: int) -> tuple[float, ...]:
        """The factor of each of `count` models, by which the blend is their sum; of adapters it is computed so."""
        if self.kind == "interpolate":
            return 1 - self.alpha, self.alpha
        if self.kind == "residual":
            return 1.0, self.alpha, -self.alpha
        weights = self.weights or (1.0,) * count
        return tuple(weight / sum(weights) for weight in weights) if self.kind == "average" else weights

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """The blend of tensors of one shape, fp32, in the order of the models."""
        if self.kind == "interpolate":
            base, trained = tensors
            if self.alpha < 0.5:
                return base + self.alpha * (trained - base)
            return trained - (1 - self.alpha) * (trained - base)  # alpha = 1 is the trained model, bit for bit
        if self.kind == "residual":
            cpt, instruct, base = tensors
            return cpt + self.alpha * (instruct - base)
        weights = self.weights or (1.0,) * len(tensors)
        total = weights[0] * tensors[0]
        for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
            total = total + weight * tensor
        return total / sum(weights)


class BlendedWeights:
    """The blend of several models as a source of weights: of each model PIECE elements are in memory at a time."""

    def __init__(self, blend: Blend, sources: Sequence[MappedWeights], shape: LlamaConfig, names: Sequence[str] = ()):
        """`sources`: the weights of the models, which all have this shape. `names`: what errors call them."""
        self.blend, self.sources, self.names = blend, sources, names
        self.sizes = {name: tuple(parameter.shape) for name, parameter in empty_model(shape).named_parameters()}

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        """Yields rows [start, stop) of our parameter `name`, fp32, in pieces. Raises ValueError for a number that is
        not finite.
        """
        size, *others = self.sizes[name]
        stop, at_once = min(stop, size), max(1, PIECE // math.prod(others))
        for first in range(start, stop, at_once):
            last = min(first + at_once, stop)
            pieces = [torch.cat([part.float() for part in source.rows(name, first, last)]) for source in self.sources]
            blended = self.blend(pieces)
            del pieces  # views of files, where these are fp32
            for source in self.sources:
                source.let_go()
            if not blended.isfinite().all():
                raise ValueError(self.reason(name, first, last))
            yield blended

    def reason(self, name: str, first: int, last: int) -> str:
        """Why rows are not finite, in words."""
        for called, source in zip(self.names, self.sources, strict=False):
            if not all(part.isfinite().all() for part in source.rows(name, first, last)):
                return (
                    f"{called}: {name}, rows {first} to {last}, has numbers that are not finite: the model is damaged"
                )
        what = "alpha is" if self.blend.kind in ROLES else "weights are"
        return f"{name}: rows {first} to {last} are not finite; {what} too large"


def check_same_shape(names: Sequence[str], shapes: Sequence[LlamaConfig]) -> None:
    """Raises ValueError for models of which one differs from the first, with what differs. How many positions a model
    knows may differ: no weight depends on it.
    """
    for name, shape in zip(names[1:], shapes[1:], strict=True):
        for field in fields(LlamaConfig):
            ours, theirs = getattr(shapes[0], field.name), getattr(shape, field.name)
            if ours != theirs and field.name != "max_positions":
                raise ValueError(
                    f"{name}: {field.name} is {theirs}, that of {names[0]} {ours}; only models of one shape can be "
                    f"blended"
                )


def whole(source: WeightSource, name: str) -> Tensor:
    """The whole of a parameter, in the dtype of its first piece."""
    return torch.cat(list(source.rows(name, 0, sys.maxsize)))
