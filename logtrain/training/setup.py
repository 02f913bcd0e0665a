"""The ranks, the model's shape and the data of a run, checked against each other before anything large is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from logtrain.core.checksums import check_folder
from logtrain.core.world import World, compute_dtype
from logtrain.model import hf
from logtrain.model.llama import Llama, LlamaConfig
from logtrain.model.lora import InitialAdapters
from logtrain.model.published import check_source
from logtrain.model.weights import RandomWeights, WeightSource
from logtrain.training.checks import check_device, check_torch
from logtrain.training.config import RunConfig
from logtrain.training.run_data import RunData, open_run_data
from logtrain.training.sharding import build_model, make_mesh


@dataclass(frozen=True)
class RunSetup:
    """The checked beginnings of a run, from which its model is built."""

    config: RunConfig
    """The settings, with absolute paths."""
    world: World
    """This process among the ranks."""
    shape: LlamaConfig
    """Sizes of the model."""
    dtype: torch.dtype
    """Precision of products and activations."""
    mesh: DeviceMesh
    """The arrangement of the ranks for sharding."""
    data: RunData
    """The loaders, the tokenizer and what is known of the data."""
    attention: str
    """Which attention was chosen, and why, in words."""

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.config.runs) / self.config.name

    @property
    def export_dtype(self) -> torch.dtype:
        """Precision of the exported weights."""
        return self.dtype if self.config.export_dtype == "auto" else getattr(torch, self.config.export_dtype)

    def initial_weights(self) -> WeightSource:
        """The weights that the run starts from: the model's or random ones, with new adapters if the config has any.
        Raises ValueError for files that are missing or damaged.
        """
        config = self.config
        random = config.init == "random"
        weights = RandomWeights(self.shape, config.seed) if random else hf.Weights(config.model, self.shape)
        return InitialAdapters(weights, self.shape, config.lora, config.seed) if config.lora.rank else weights

    def build_model(self, source: WeightSource | None, *, adapters: bool = True) -> Llama:
        """The sharded model of the run, as `sharding.build_model` makes it; reading its weights counts for the
        watchdog.
        """
        source = source and Noted(source, self.world)
        return build_model(self.config, self.shape, self.mesh, self.dtype, source, adapters=adapters)


@dataclass(frozen=True)
class Noted:
    """A source of weights of which every tensor counts as completed work, so that a slow disk is no stuck rank."""

    source: WeightSource
    """The source that is read."""
    world: World
    """This process among the ranks, which counts the work."""

    def rows(self, name: str, start: int, stop: int) -> Iterable[Tensor]:
        """Rows [start, stop) of the parameter `name`, in pieces and in order."""
        self.world.note(f"reading {name}")
        return self.source.rows(name, start, stop)


def set_up(config: RunConfig) -> RunSetup:
    """Join the ranks, and open and check what a run reads. Every rank calls this with the same config. Raises
    ValueError of one line for model, data, settings and device that do not go together.
    """
    config = config.with_absolute_paths()  # so that config.toml repeats the run from any folder
    check_torch(config)
    parallel, folder = config.parallel, Path(config.runs) / config.name
    world = World(parallel.symmetric_memory, timeout=parallel.timeout, stacks=folder)
    try:
        if world.local_rank == 0:  # once a node
            check_folder(Path(config.model), world.note)
        shape, dtype = hf.read_config(config.model), compute_dtype(world.device, config.compute_dtype)
        check_source(Path(config.model), shape)
        attention = check_device(world.device, dtype, config, shape)
        mesh = make_mesh(world.device.type, world.size, parallel)
        world.note(f"verifying {config.data}")
        return RunSetup(config, world, shape, dtype, mesh, open_run_data(config, shape, world), attention)
    except BaseException:
        world.watchdog.close()
        raise
