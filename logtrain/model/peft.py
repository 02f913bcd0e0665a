"""Adapters in PEFT's file format: adapter_config.json beside adapter_model.safetensors."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from logtrain.model.config import LoraConfig, LoraTarget
from logtrain.model.hf import read_json
from logtrain.model.llama import LlamaConfig
from logtrain.model.lora import adapter_spans, in_features

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def peft_name(block: int, path: str, target: LoraTarget) -> str:
    part = "self_attn" if path.startswith("attention") else "mlp"
    return f"base_model.model.model.layers.{block}.{part}.{target}"


def save(folder: Path, tensors: Mapping[str, Tensor], shape: LlamaConfig, config: LoraConfig, base: str) -> None:
    """Write an adapter that PEFT loads. `tensors`: As and Bs by our names; `base`: the plain model's folder."""
    layout, found = adapter_spans(shape, config), {}
    for name, tensor in tensors.items():
        _, block, *path, kind = name.split(".")
        for target, _, rows, ranks in layout[".".join(path)]:
            part = tensor[ranks if kind == "lora_A" else rows]
            found[f"{peft_name(int(block), '.'.join(path), target)}.{kind}.weight"] = part.cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    save_file(found, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(facts, indent=2) + "\n")


UNSUPPORTED = (  # by `LoraLinear`, if they are on
    *("fan_in_fan_out", "use_rslora", "use_dora", "use_qalora", "use_bdlora", "lora_bias"),
    *("rank_pattern", "alpha_pattern", "layers_to_transform", "layer_replication"),
    *("modules_to_save", "target_parameters", "trainable_token_indices", "alora_invocation_tokens"),
)
INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")  # the others change the model's own weights too


def base_folder(folder: Path) -> Path:
    """The model that an adapter names as its own."""
    path = folder / CONFIG
    name = read_json(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not Path(name).is_dir():
        raise ValueError(
            f"{path}: base_model_name_or_path = {json.dumps(name)} is no folder here; set it to the model's folder"
        )
    return Path(name)


def read(folder: Path, shape: LlamaConfig) -> tuple[LoraConfig, dict[str, Tensor]]:
    """An adapter in PEFT's format: its config, and our names -> tensors, for a model of this shape. What `LoraLinear`
    does not compute is refused by name.
    """
    try:
        facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise ValueError(
            f"{error.filename or folder / WEIGHTS}: no such file; give a folder that PEFT has saved"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{folder}: damaged adapter ({error})") from None
    config = read_config(folder / CONFIG, facts, folder / WEIGHTS, tensors)
    found: dict[str, Tensor] = {}
    for block in range(shape.num_layers):
        for path, of_matrix in adapter_spans(shape, config).items():
            for kind in ("lora_A", "lora_B"):
                pieces = []
                for target, _, rows, _ in of_matrix:
                    name, size = f"{peft_name(block, path, target)}.{kind}.weight", rows.stop - rows.start
                    wanted = [config.rank, in_features(shape, path)] if kind == "lora_A" else [size, config.rank]
                    if name not in tensors:
                        raise ValueError(f"{folder / WEIGHTS}: no tensor {name}; an adapter of another model?")
                    piece = tensors.pop(name)
                    if list(piece.shape) != wanted:
                        raise ValueError(
                            f"{folder / WEIGHTS}: {name} has shape {list(piece.shape)}, model and rank ask for {wanted}"
                        )
                    pieces.append(piece.float())
                found[f"blocks.{block}.{path}.{kind}"] = torch.cat(pieces)
    if tensors:
        raise ValueError(f"{folder / WEIGHTS}: unexpected tensor {next(iter(tensors))}; an adapter of another model?")
    return config, found


def read_config(path: Path, facts: object, weights: Path, names: Iterable[str]) -> LoraConfig:
    """Of the adapter whose tensors have these names."""
    if not isinstance(facts, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(facts).__name__}")
    used = [key for key in UNSUPPORTED if facts.get(key)]
    used += [key for key, wanted in (("peft_type", "LORA"), ("bias", "none")) if facts.get(key, wanted) != wanted]
    used += ["init_lora_weights"] if facts.get("init_lora_weights") not in INITIAL else []
    if used:
        raise ValueError(f"{path}: {used[0]} = {json.dumps(facts[used[0]])} is not supported")
    rank, alpha, dropout = facts.get("r"), facts.get("lora_alpha"), facts.get("lora_dropout", 0.0)
    if not (type(rank) is int and rank > 0 and all(type(x) in (int, float) for x in (alpha, dropout))):
        raise ValueError(
            f"{path}: r = {json.dumps(rank)}, lora_alpha = {json.dumps(alpha)}, lora_dropout = {json.dumps(dropout)}; "
            f"expected a positive integer and numbers"
        )
    there = {name.split(".")[-3:][0] for name in names}  # ....q_proj.lora_A.weight
    if unknown := there - set(get_args(LoraTarget)):
        supported = ", ".join(get_args(LoraTarget))
        raise ValueError(f"{weights}: adapts {', '.join(sorted(unknown))}; supported: {supported}")
    targets = tuple(target for target in get_args(LoraTarget) if target in there)
    return LoraConfig(rank=rank, alpha=alpha, dropout=dropout, targets=targets)
