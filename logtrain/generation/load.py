"""Loads a model folder to answer with: any Llama in the Hugging Face layout, an export of ours, or an adapter in PEFT's
format, which is merged into the model that it names.

    folder = ModelFolder("runs/sft/export")             reads shape, tokenizer, chat template and sampling
    loaded = folder.load(device, max_sequences=8)       reads the weights, if they fit into memory
    generator = loaded.generator(memory=0)              allocates a cache, if it fits
    answers = generator.run(Request(prompt=folder.template.prompt(turns), sampling=folder.sampling) for turns in chats)
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from logtrain.core.checksums import check_folder
from logtrain.core.still import note
from logtrain.core.untrusted import read_bytes
from logtrain.core.world import compute_dtype
from logtrain.generation.config import DRAWN_BY, LLAMA_SAMPLING, SamplingConfig
from logtrain.generation.cpu_linear import pack_linears
from logtrain.generation.generator import Generator
from logtrain.generation.kv_cache import slot_bytes
from logtrain.generation.memory import cache_bytes, check_memory
from logtrain.model import hf, peft, published
from logtrain.model.adapter import Adapter
from logtrain.model.base import base_folder, hash_weights
from logtrain.model.llama import Llama, LlamaConfig
from logtrain.model.published import GENERATION
from logtrain.model.weights import WeightSource, read_model
from logtrain.text.chat_template import ChatTemplate
from logtrain.text.config import DATE
from logtrain.text.template_source import tokenizer_file
from logtrain.text.tokenizer import Tokenizer


class ModelFolder:
    """The folder of a model or of an adapter. Most of it is read when it is first asked for, which raises ValueError,
    with the file's name, if a file is missing or wrong.

    base: the folder of the model itself, which an adapter names. stop_ids: the tokens that end a sequence by the files;
    an adapter may have learned another one than its model has.
    """

    def __init__(self, path: str | Path, template_file: str = "", date: str = DATE):
        """`template_file`: a chat template to use instead of the folder's own. `date`: the date that the template takes
        for today's. Raises ValueError if an adapter's model is not there, a file has been damaged since it was
        published, or the files name stop tokens that are no ids.
        """
        self.path, self.template_file, self.date = Path(path), template_file, date
        self.base = base_folder(self.path) if os.path.lexists(self.path / peft.CONFIG) else self.path
        self.is_adapter = self.base != self.path
        for folder in dict.fromkeys((self.base, self.path)):
            check_folder(folder)
        files = (self.path / GENERATION, self.base / GENERATION, self.base / "config.json")
        self.stop_ids = frozenset(hf.end_ids(*files))

    @cached_property
    def shape(self) -> LlamaConfig:
        """Sizes of the model, from config.json; an adapter may have resized its vocabulary."""
        return self.adapter.shape if self.is_adapter else hf.read_config(self.base)

    @cached_property
    def adapter(self) -> Adapter:
        """The adapter of a folder that has one."""
        return Adapter(self.path, hf.read_config(self.base))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; an adapter's own is preferred to its model's."""
        return Tokenizer.load(self.path if tokenizer_file(self.path) else self.base)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template; an adapter's own is preferred to its model's."""
        return ChatTemplate.load(self.tokenizer, self.template_file, self.date, self.path if self.is_adapter else None)

    @property
    def answer_ends(self) -> frozenset[int]:
        """The tokens that end an answer in a chat: `stop_ids`, and the end of a turn in the chat template."""
        return self.stop_ids | self.template.ends

    @cached_property
    def sampling(self) -> SamplingConfig:
        """The settings of draws in generation_config.json; those that it leaves out are neutral (temperature 1, all
        tokens). If it has none at all, they are those of Llama-3.1-8B-Instruct.
        """
        own = self.path / GENERATION
        file = own if os.path.lexists(own) else self.base / GENERATION
        facts = published.read_generation(file)
        found = {name: facts[name] for name in (*DRAWN_BY, "min_p") if facts.get(name) is not None}
        if facts.get("do_sample") is False:
            found["temperature"] = 0.0
        elif facts.get("do_sample") is None and not found.keys() - {"repetition_penalty"}:
            found |= LLAMA_SAMPLING
        try:
            return SamplingConfig(**{"temperature": 1.0, **found})
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def digest(self) -> str:
        """A hex digest by which two models are told apart, wherever they lie, without reading all of them: the SHA-256
        of config.json and of parts of every file of weights.
        """
        found = hashlib.sha256(read_bytes(self.base / "config.json"))
        if self.is_adapter:
            facts = hf.read_json(self.path / peft.CONFIG) | {"base_model_name_or_path": ""}
            found.update(json.dumps(facts, sort_keys=True).encode())
        hash_weights(found, dict.fromkeys((self.base, self.path)))
        return found.hexdigest()

    # ---- the weights

    def open_weights(self) -> WeightSource:
        """The source of the weights, which reads them when they are asked for. Raises ValueError for files that are
        missing, damaged or do not belong together.
        """
        shape = self.shape
        published.check_vocabulary(self.tokenizer, shape)
        if not self.is_adapter:
            return hf.Weights(self.base, shape)
        return self.adapter.merged(hf.Weights(self.base, hf.read_config(self.base)))

    def summary(self, device: torch.device) -> str:
        """The model's name, size and dtype on a device, in a few words."""
        dtype = str(compute_dtype(device)).removeprefix("torch.")
        return f"{self.path}: {self.shape.num_parameters / 1e6:,.1f} M parameters in {dtype}"

    def check_memory(self, device: torch.device) -> None:
        """Raises ValueError if the device has not enough memory for the weights."""
        check_memory(self.summary(device), self.shape.num_parameters * compute_dtype(device).itemsize, device)

    def load(self, device: torch.device, max_sequences: int = 1, packed: bool = True) -> "LoadedModel":
        """The model with its weights on a device. `max_sequences`: the most requests that it will answer at once.
        `packed`: whether a CPU has the matrices only in the layout in which it computes fastest (cpu_linear.py), not as
        parameters with names and gradients. Raises ValueError as `open_weights` and `check_memory` do.
        """
        self.check_memory(device)
        note(f"loading the weights of {self.path}")
        model = read_model(self.shape, self.open_weights(), device, compute_dtype(device)).requires_grad_(False)
        if packed and device.type == "cpu":
            pack_linears(model)
        return LoadedModel(self, model, max_sequences)


@dataclass(frozen=True)
class LoadedModel:
    """A model folder with its weights in memory."""

    folder: ModelFolder
    """The folder that the weights are from."""
    model: Llama
    """The whole model on one device, in bf16 on a GPU and in fp32 on a CPU, without gradients."""
    max_sequences: int
    """The most requests that it will answer at once."""

    def generator(
        self,
        memory: float,
        *,
        stop_ids: Iterable[int] | None = None,
        step_tokens: int = 4096,
        keep_prefixes: bool = False,
    ) -> Generator:
        """A generator for chats. `memory`: GiB for keys and values; 0 takes what `cache_bytes` proposes. `stop_ids`:
        the tokens that end every answer; None takes those that end one in a chat. `step_tokens` and `keep_prefixes` are
        the Generator's. Raises ValueError if there is not so much memory, or the folder has no chat template that says
        what ends an answer.
        """
        shape, weight = self.model.config, self.model.embedding.weight
        size = cache_bytes(memory, weight.device)
        most = self.max_sequences * shape.max_positions * slot_bytes(shape, weight.dtype)
        check_memory("the cache (--memory)", min(size, most), weight.device)
        return Generator(
            self.model,
            self.folder.tokenizer,
            self.folder.answer_ends if stop_ids is None else stop_ids,
            memory=size,
            max_sequences=self.max_sequences,
            step_tokens=step_tokens,
            keep_prefixes=keep_prefixes,
        )
