"""Where a model's weights come from, and how they come into memory: every rank asks a source for exactly the rows that
it owns.
"""

import zlib
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from logtrain.model.float8 import held
from logtrain.model.llama import Llama, LlamaConfig


class WeightSource(Protocol):
    """Anything that weights can be taken from."""

    def rows(self, name: str, start: int, stop: int) -> Iterable[Tensor]:
        """Yields rows [start, stop) of our parameter `name`, in order, in pieces of any size and dtype."""
        ...


class RandomWeights:
    """Initial values for training from scratch: normal with deviation 0.02, projections into the residual stream by 1
    / sqrt(2 L) less, norms 1.

    Each matrix is drawn from (seed, its name) alone: the same on any number of ranks.
    """

    def __init__(self, config: LlamaConfig, seed: int):
        self.shapes = {name: p.shape for name, p in empty_model(config).named_parameters()}
        self.seed, self.residual_std = seed, 0.02 / (2 * config.num_layers) ** 0.5

    def rows(self, name: str, start: int, stop: int) -> tuple[Tensor]:
        """Returns rows [start, stop) of our parameter `name`, fp32, in one piece."""
        shape = self.shapes[name]
        if len(shape) == 1:
            return (torch.ones(stop - start),)
        std = self.residual_std if name.endswith(("out.weight", "down.weight")) else 0.02
        return (torch.empty(shape).normal_(0, std, generator=generator_of(self.seed, name))[start:stop],)


def generator_of(seed: int, name: str) -> torch.Generator:
    """Returns a generator on the CPU whose numbers depend on (seed, a parameter's name) alone."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))


def empty_model(config: LlamaConfig) -> Llama:
    """Returns a model of this shape on the meta device: it has names, shapes and dtypes, but no memory."""
    with torch.device("meta"):
        return Llama(config)


def materialize(model: Llama, device: torch.device, source: WeightSource | None) -> None:
    """Gives a meta model memory on `device` for this rank's shards, and fills them from `source`, piece by piece. None
    leaves whatever the memory held.
    """
    model.to_empty(device=device)
    model.tie_head()  # to_empty gives each its own memory
    if source is None:
        return
    for name, parameter in model.named_parameters():
        fill_rows(parameter, name, source)


@torch.no_grad()
def fill_rows(parameter: Tensor, name: str, source: WeightSource) -> None:
    """Puts the rows of `source` into a parameter of that name in place: those that this rank owns, piece by piece, in
    the parameter's dtype. A parameter is a matrix or a vector, [rows, ...].
    """
    start, local = local_rows(parameter)
    filled = 0
    for piece in source.rows(name, start, start + len(local)) if len(local) else ():
        local[filled : filled + len(piece)].copy_(piece)
        filled += len(piece)
    assert filled == len(local), f"{name}: {filled} of {len(local)} rows filled"


def local_rows(parameter: Tensor) -> tuple[int, Tensor]:
    """Returns the first row and the rows [rows, ...] that this rank owns of a parameter, sharded or not and of any
    dtype; they share its memory.
    """
    if not isinstance(parameter, DTensor):
        return 0, parameter.detach()
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return offset[0], held(parameter.to_local().detach())


def read_model(config: LlamaConfig, source: WeightSource, device: torch.device, dtype: torch.dtype) -> Llama:
    """Reads a whole model onto one device, in one dtype."""
    model = empty_model(config).to(dtype)
    materialize(model, device, source)
    return model
