"""What a run works with, opened and checked against each other before anything large is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from logtrain.core.world import World, compute_dtype
from logtrain.model import hf
from logtrain.model.llama import Llama, LlamaConfig
from logtrain.model.lora import InitialAdapters
from logtrain.model.weights import RandomWeights, WeightSource
from logtrain.training.checks import check_device, check_torch
from logtrain.training.config import RunConfig
from logtrain.training.run_data import RunData, open_run_data
from logtrain.training.sharding import build_model, make_mesh


@dataclass(frozen=True)
class RunSetup:
    config: RunConfig
    world: World
    shape: LlamaConfig
    dtype: torch.dtype
    """of products and activations"""
    mesh: DeviceMesh
    data: RunData

    @property
    def folder(self) -> Path:
        return Path(self.config.runs) / self.config.name

    @property
    def export_dtype(self) -> torch.dtype:
        return self.dtype if self.config.export_dtype == "auto" else getattr(torch, self.config.export_dtype)

    def initial_weights(self) -> WeightSource:
        """What the run starts from: the model's weights or random ones, and new adapters if the config has any."""
        config = self.config
        random = config.init == "random"
        weights = RandomWeights(self.shape, config.seed) if random else hf.Weights(config.model, self.shape)
        return InitialAdapters(weights, self.shape, config.lora, config.seed) if config.lora.rank else weights

    def build_model(self, source: WeightSource | None, *, adapters: bool = True) -> Llama:
        """See `sharding.build_model`."""
        source = source and Noted(source, self.world)
        return build_model(self.config, self.shape, self.mesh, self.dtype, source, adapters=adapters)


@dataclass(frozen=True)
class Noted:
    """Weights of `source`, whose reading counts as something that gets done: a slow disk is no stuck rank."""

    source: WeightSource
    world: World

    def rows(self, name: str, start: int, stop: int) -> Iterable[Tensor]:
        """Rows [start, stop) of our parameter `name`."""
        self.world.note(f"reading {name}")
        return self.source.rows(name, start, stop)


def set_up(config: RunConfig) -> RunSetup:
    """Every rank calls it, with the same config. Raises ValueError, in one line, for what does not go together."""
    config = config.with_absolute_paths()  # so that config.toml repeats the run from any folder
    check_torch(config)
    world = World(config.parallel.symmetric_memory)
    shape, dtype = hf.read_config(config.model), compute_dtype(world.device, config.dtype)
    check_device(world.device, dtype, config, shape)
    mesh = make_mesh(world.device.type, world.size, config.parallel)
    return RunSetup(config, world, shape, dtype, mesh, open_run_data(config, shape, world))
