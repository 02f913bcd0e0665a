"""Adapters in PEFT's file format: adapter_config.json beside adapter_model.safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from logtrain.lora import LoraConfig, Target, adapters
from logtrain.model import LlamaConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def peft_name(block: int, path: str, target: Target) -> str:
    part = "self_attn" if path.startswith("attention") else "mlp"
    return f"base_model.model.model.layers.{block}.{part}.{target}"


def save(folder: Path, tensors: Mapping[str, Tensor], shape: LlamaConfig, config: LoraConfig, base: str) -> None:
    """Write an adapter that PEFT loads. `tensors`: As and Bs by our names; `base`: the plain model's folder."""
    layout, found = adapters(shape, config), {}
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
    plain = {"peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False}
    plain |= dict.fromkeys(("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "lora_bias"))
    for key, wanted in plain.items():
        if facts.get(key, wanted) != wanted and facts[key]:
            raise ValueError(f"{folder / CONFIG}: {key} = {json.dumps(facts[key])} is not supported")
    there = {name.split(".")[-3] for name in tensors}
    if unknown := there - set(get_args(Target)):
        raise ValueError(
            f"{folder / WEIGHTS}: adapts {', '.join(sorted(unknown))}; supported: {', '.join(get_args(Target))}"
        )
    targets = tuple(target for target in get_args(Target) if target in there)
    config = LoraConfig(
        rank=facts["r"], alpha=facts["lora_alpha"], dropout=facts.get("lora_dropout", 0.0), targets=targets
    )
    found: dict[str, Tensor] = {}
    for block in range(shape.num_layers):
        for path, of_matrix in adapters(shape, config).items():
            for kind in ("lora_A", "lora_B"):
                names = [f"{peft_name(block, path, adapter.target)}.{kind}.weight" for adapter in of_matrix]
                if absent := [name for name in names if name not in tensors]:
                    raise ValueError(f"{folder / WEIGHTS}: no tensor {absent[0]}; an adapter of another model?")
                found[f"blocks.{block}.{path}.{kind}"] = torch.cat([tensors.pop(name).float() for name in names])
    if tensors:
        raise ValueError(f"{folder / WEIGHTS}: unexpected tensor {next(iter(tensors))}; an adapter of another model?")
    return config, found
