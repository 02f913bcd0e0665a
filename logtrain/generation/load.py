"""A model folder, ready to answer: any Llama in the Hugging Face layout, an export of ours, or an adapter in PEFT's
format, which is merged into the model that it names.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from logtrain.core.world import compute_dtype
from logtrain.generation.cpu_linear import use_blocked_linears
from logtrain.generation.sampling import SamplingConfig
from logtrain.model import hf, peft
from logtrain.model.llama import Llama, LlamaConfig
from logtrain.model.lora import MergedAdapters
from logtrain.model.weights import WeightSource, read_model
from logtrain.text import chat_template
from logtrain.text.chat_template import DATE, ChatTemplate
from logtrain.text.tokenizer import Tokenizer

GENERATION = "generation_config.json"
SAMPLES, SAMPLE_BYTES = 64, 1 << 14
BLOCKED_FROM = 4  # sequences
DRAWN_BY = ("temperature", "top_k", "top_p", "repetition_penalty")
LLAMA_SAMPLING = {"temperature": 0.6, "top_p": 0.9}  # generation_config.json of Llama-3.1-8B-Instruct


@dataclass(frozen=True)
class Pretrained:
    folder: Path
    """of the model; of an adapter's, its model's"""
    model: Llama
    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    """the ends of a sequence that its files name"""


def load_pretrained(path: str | Path, device: torch.device, at_once: int = 1) -> Pretrained:
    """The whole model on one device, in bf16 on GPUs, fp32 on CPUs. `path`: a model's folder or an adapter's;
    `at_once`: sequences that it will go on with at once, by which a CPU's matrices are laid out. Raises what
    `open_weights` raises.
    """
    path = Path(path)
    folder = model_folder(path)
    shape, tokenizer = hf.read_config(folder), Tokenizer.load(folder)
    weights = open_weights(path, shape, tokenizer)
    model = read_model(shape, weights, device, compute_dtype(device)).requires_grad_(False)
    if device.type == "cpu" and at_once >= BLOCKED_FROM:
        use_blocked_linears(model)
    return Pretrained(folder, model, tokenizer, stop_ids(path))


def open_weights(path: Path, shape: LlamaConfig, tokenizer: Tokenizer) -> WeightSource:
    """What gives the weights, of which little is read yet. Raises ValueError for files that are missing, damaged, or do
    not belong together.
    """
    folder = model_folder(path)
    if tokenizer.vocab_size > shape.vocab_size:
        raise ValueError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size:,} ids, its model only {shape.vocab_size:,}; they do "
            f"not belong together"
        )
    weights = hf.Weights(folder, shape)
    if folder == path:
        return weights
    config, tensors = peft.read(path, shape)
    return MergedAdapters(weights, tensors, shape, config)


def digest(path: Path) -> str:
    """By which two models are told apart without reading all of them, wherever they are: of their shapes, and of
    SAMPLES stretches of SAMPLE_BYTES of each file of weights, evenly spread; training changes every one.
    """
    found, folder = hashlib.sha256((model_folder(path) / "config.json").read_bytes()), model_folder(path)
    if folder != path:
        facts = hf.read_json(path / peft.CONFIG) | {"base_model_name_or_path": ""}
        found.update(json.dumps(facts, sort_keys=True).encode())
    for file in (file for of in dict.fromkeys((folder, path)) for file in sorted(of.glob("*.safetensors"))):
        size = file.stat().st_size
        found.update(f"{file.name} {size}\n".encode())
        with open(file, "rb") as stream:
            for i in range(SAMPLES):
                stream.seek(max(0, size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                found.update(stream.read(SAMPLE_BYTES))
    return found.hexdigest()


def model_folder(path: Path) -> Path:
    """The folder itself, or the one of the model that its adapter names."""
    return peft.base_folder(path) if (path / peft.CONFIG).exists() else path


def load_template(path: Path, tokenizer: Tokenizer, file: str = "", date: str = DATE) -> ChatTemplate:
    """`tokenizer`: of the model; `file`: a template instead of the folder's own."""
    own = path / chat_template.FILE
    return ChatTemplate.load(tokenizer, file or (own if own.exists() else ""), date)


def stop_ids(path: Path) -> frozenset[int]:
    """An adapter may have learned another end than its model's."""
    folder = model_folder(path)
    return frozenset(hf.end_ids(path / GENERATION, folder / GENERATION, folder / "config.json"))


def published_sampling(path: Path) -> SamplingConfig:
    """How generation_config.json has answers drawn; what it leaves out is neutral (temperature 1, all tokens). One that
    says nothing of it: as Llama-3.1-Instruct's.
    """
    file = path / GENERATION if (path / GENERATION).exists() else model_folder(path) / GENERATION
    facts = hf.read_json(file) if file.exists() else {}
    found = {name: facts[name] for name in DRAWN_BY if facts.get(name) is not None}
    for name, value in found.items():
        if type(value) is not int and (type(value) is not float or name == "top_k"):
            raise ValueError(f"{file}: {name} = {json.dumps(value)}; expected a number")
    if facts.get("do_sample") is False:
        found["temperature"] = 0.0
    elif facts.get("do_sample") is None and not found.keys() - {"repetition_penalty"}:
        found |= LLAMA_SAMPLING
    try:
        return SamplingConfig(**{"temperature": 1.0, **found})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
