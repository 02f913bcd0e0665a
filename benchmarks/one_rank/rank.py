"""Rank 0 of a recipe's ranks, alone on one device: what it is told, and its model, batches and step."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from benchmarks.documents import RandomDocuments, lognormal_lengths
from benchmarks.one_rank.links import Links
from benchmarks.weights import DeviceWeights
from logtrain.core.world import compute_dtype
from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader, Step
from logtrain.model.llama import LlamaConfig
from logtrain.model.lora import InitialAdapters
from logtrain.model.weights import local_rows
from logtrain.planning.shape import read_shape
from logtrain.planning.trace import PretendedWorld
from logtrain.training.config import RunConfig
from logtrain.training.optim import make_optimizer
from logtrain.training.sharding import build_model, make_mesh
from logtrain.training.step import TrainStep

Library = Literal["logtrain", "transformers", "liger"]
TOTAL_STEPS = 100  # of the pretended run, over which the learning rate goes


@dataclass(frozen=True, kw_only=True)
class OneRankConfig(RunConfig):
    """Time the step of one rank of a recipe, on one device. `model`: a folder, or any path that names a size."""

    name: str = "one_rank"
    data: str = "none"
    ranks: int = 8
    """Ranks of the recipe, of which this is the first."""
    links: tuple[float, ...] = (370e9,)
    """Bytes a second of the links between GPUs (bus bandwidth, as nccl-tests define it), one after the other. An H100
    node has 370e9. 0: collectives take no time."""
    library: Library = "logtrain"
    """Whose model and kernels; the step, the optimizer, the batches and the attention kernel are ours in any case."""
    rows: tuple[int, ...] = ()
    """Rows of a micro-batch, one after the other until memory ends, with one micro-batch a step. (): the recipe's."""
    layers: int = 0
    """Layers of the model. 0: all of them."""
    steps: int = 2
    """Steps on the clock, after one that warms up."""
    trace: str = ""
    """File for a profile of one more step: NAME.json.gz."""
    label: str = ""
    """What the figures' names begin with. "": the library."""


def shape_of(config: OneRankConfig) -> LlamaConfig:
    """The model's shape, with positions that are not scaled and as many layers as are asked for."""
    shape = read_shape(config.model)
    fields = {**vars(shape), "rope_scaling": None, "num_layers": config.layers or shape.num_layers}
    return LlamaConfig(**fields)


class Rank:
    """A model with its optimizer, its links and its batches, in a process group that sends nothing."""

    def __init__(self, config: OneRankConfig, device: torch.device):
        self.config, self.device, self.shape = config, device, shape_of(config)
        self.dtype = compute_dtype(device, config.dtype)
        self.mesh = make_mesh(device.type, config.ranks, config.parallel)
        self.links = Links(self.mesh["shard"].size(), device)
        self.model = self.build()
        self.links.connect(self.model)
        optimizer = make_optimizer(self.model, config.optim)
        world = PretendedWorld(device, config.ranks)
        max_norm = config.trainer.max_grad_norm
        # A peer's module takes a batch and gives the summed loss, which is all that the step asks of a model.
        self.train_step = TrainStep(self.model, optimizer, config.optim, max_norm, TOTAL_STEPS, world)  # pyright: ignore[reportArgumentType]

    def build(self) -> nn.Module:
        """The library's model with random weights, sharded over the ranks."""
        config = self.config
        if config.library == "logtrain":
            weights = DeviceWeights(self.shape, self.device, config.seed)
            source = InitialAdapters(weights, self.shape, config.lora, config.seed) if config.lora.rank else weights
            return build_model(config, self.shape, self.mesh, self.dtype, source)
        from benchmarks.one_rank import peers  # noqa: PLC0415  # imports transformers, which takes seconds

        model = peers.build_peer(config.library, self.shape, self.mesh, self.dtype, config.recompute == "full")
        peers.draw(model, self.device, config.seed)
        return model

    def steps(self, loader: LoaderConfig, number: int) -> list[Step]:
        """So many steps of this rank, packed from documents of NLPLog's lengths: as many as fill all but a few rows."""
        room = number * loader.rows_per_step * loader.seq_len
        lengths = lognormal_lengths(2 + room // max(1, loader.seq_len // 32), loader.seq_len)
        ends = lengths.cumsum()
        for percent in range(100, 0, -1):  # an epoch that takes one step more has that many rows empty
            fitting = max(1, ends.searchsorted(room * percent // 100, "right"))
            documents = RandomDocuments(lengths[:fitting], self.shape.vocab_size)
            packed = Loader(
                documents,
                loader,
                seed=self.config.seed,
                pad_id=0,
                world_size=self.config.ranks,
                pin_memory=self.device.type == "cuda",
            )
            if packed.steps_per_epoch <= number:
                return [packed.at(i) for i in range(number)]
        raise ValueError(f"loader.rows_per_step = {loader.rows_per_step}: no documents fit into {number} such steps")

    def held_parameters(self) -> float:
        """The share of the model's parameters that this rank holds."""
        held = sum(local_rows(p)[1].numel() for p in self.model.parameters())
        return held / sum(p.numel() for p in self.model.parameters())

    def wait(self) -> None:
        """Until the device has done what was launched."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
