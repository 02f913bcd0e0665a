"""Models with adapters, ours and PEFT's; what they drop and what they cost."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from logtrain.data.layout import token_seeds
from logtrain.model import hf
from logtrain.model import peft as adapter_files
from logtrain.model.config import LoraConfig
from logtrain.model.llama import Llama, LlamaConfig
from logtrain.model.lora import InitialAdapters, add_adapters
from logtrain.model.weights import WeightSource, empty_model, materialize
from tests.support.llama import CPU, load_transformers

TARGETS = {
    "all": LoraConfig().targets,
    "q and down": ("q_proj", "down_proj"),
    "k, v, o and up": ("k_proj", "v_proj", "o_proj", "up_proj"),
}
SHAPE = LlamaConfig(
    vocab_size=1, hidden_size=16, intermediate_size=1, num_layers=1, num_heads=4, num_kv_heads=1, head_dim=4,
    norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, max_positions=1, tied=False,
)  # fmt: skip


class RandomAdapters:
    """Weights of a folder's model with new adapters, of which B is not zero."""

    def __init__(self, folder: Path, config: LoraConfig):
        shape = hf.read_config(folder)
        self.initial = InitialAdapters(hf.Weights(folder, shape), shape, config, seed=1)

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        for i, piece in enumerate(self.initial.rows(name, start, stop)):
            generator = torch.Generator().manual_seed(len(name) * 1000 + sum(map(ord, name)) + i)
            yield torch.randn(piece.shape, generator=generator) * 0.1 if name.endswith("lora_B") else piece


def adapted(folder: Path, config: LoraConfig, dtype: torch.dtype = torch.float32) -> Llama:
    """The folder's model with random adapters, B not zero."""
    return with_adapters(folder, config, RandomAdapters(folder, config), dtype)


def with_adapters(folder: Path, config: LoraConfig, source: WeightSource, dtype: torch.dtype = torch.float32) -> Llama:
    """A model of the folder's shape with adapters, all from `source`."""
    model = empty_model(hf.read_config(folder))
    add_adapters(model, config, dtype)
    materialize(model, CPU, source)
    return model


def trained(model: Llama) -> dict[str, Tensor]:
    """What is trained of a model: As and Bs by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def in_peft(model: Llama, folder: Path, config: LoraConfig, at: Path):
    """PEFT's model of our adapters, by way of our files, which are left in `at`."""
    from peft import PeftModel

    at.mkdir(parents=True, exist_ok=True)
    adapter_files.save(at, trained(model), model.config, config, str(folder))
    return PeftModel.from_pretrained(load_transformers(folder), at, is_trainable=True)


def seeds(num_tokens: int, first: int = 0) -> Tensor:
    """The dropout seeds of tokens from `first` on, as the loader makes them."""
    return torch.from_numpy(token_seeds(1309, 0, range(first, first + num_tokens), 1))


class Products(TorchDispatchMode):
    """What all matrix products cost, and the shapes of their results."""

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.flops = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        if operation.overloadpacket in flop_registry:
            self.shapes += [tuple(x.shape) for x in (out if isinstance(out, tuple) else (out,))]
            self.flops += flop_registry[operation.overloadpacket](*args, **kwargs or {}, out_val=out)
        return out
