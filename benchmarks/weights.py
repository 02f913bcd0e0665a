"""Random weights drawn on the device that they are for: on a host the matrices of an 8B model take a minute."""

import torch

from logtrain.model.llama import LlamaConfig
from logtrain.model.weights import empty_model, generator_of

PIECE = 2**26  # numbers drawn at once: 256 MiB of fp32


class DeviceWeights:
    """Weights normal with deviation 0.02 and norms of 1, a source for `model.weights.materialize`.

    They depend on (seed, name, first row that is asked for, device); only `logtrain.model.weights.RandomWeights` gives
    the same matrix on any number of ranks.
    """

    def __init__(self, shape: LlamaConfig, device: torch.device, seed: int = 0):
        self.shapes = {name: p.shape for name, p in empty_model(shape).named_parameters()}
        self.device, self.seed = device, seed

    def rows(self, name: str, start: int, stop: int):
        """Rows [start, stop) of our parameter `name`, fp32 on the device, in pieces."""
        shape = self.shapes[name]
        if len(shape) == 1:
            yield torch.ones(stop - start, device=self.device)
            return
        seed = generator_of(self.seed, f"{name} {start}").initial_seed()
        generator = torch.Generator(self.device).manual_seed(seed)
        at_once = max(1, PIECE // shape[1])
        for first in range(start, stop, at_once):
            piece = torch.empty(min(at_once, stop - first), shape[1], device=self.device)
            yield piece.normal_(0, 0.02, generator=generator)
