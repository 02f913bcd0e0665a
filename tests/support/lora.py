"""Models with adapters, ours and PEFT's."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from logtrain.model import hf
from logtrain.model import peft as adapter_files
from logtrain.model.config import LoraConfig
from logtrain.model.llama import Llama
from logtrain.model.lora import InitialAdapters, add_adapters
from logtrain.model.weights import WeightSource, empty_model, materialize
from tests.support.llama import CPU, load_transformers


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
