"""Adapters in PEFT's file format: adapter_config.json beside adapter_model.safetensors. Read here are those that
`LoraLinear` computes beside a model; adapter.py merges others, too.
"""

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from logtrain.core.untrusted import shown
from logtrain.model.config import LoraConfig, LoraTarget
from logtrain.model.hf import check_safetensors, write
from logtrain.model.hf_layout import is_number, published_tensors, read_json
from logtrain.model.llama import LlamaConfig
from logtrain.model.lora import adapted_matrices

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
SAVED = "give a folder that PEFT has saved"


def peft_name(block: int, path: str, target: LoraTarget, kind: str) -> str:
    """Returns PEFT's name of an adapter's tensor. `path`: our matrix within a block; `kind`: lora_A or lora_B."""
    part = "self_attn" if path.startswith("attention") else "mlp"
    return f"base_model.model.model.layers.{block}.{part}.{target}.{kind}.weight"


def save(folder: Path, tensors: Mapping[str, Tensor], shape: LlamaConfig, config: LoraConfig, base: str) -> None:
    """Writes an adapter that PEFT loads. `tensors`: As and Bs by our names; `base`: the plain model's folder."""
    matrices, found = adapted_matrices(shape, config), {}
    for name, tensor in tensors.items():
        _, block, *within, kind = name.split(".")
        path = ".".join(within)
        for target, span in matrices[path].spans.items():
            rows = tensor[span.ranks if kind == "lora_A" else span.rows]
            found[peft_name(int(block), path, target, kind)] = rows.cpu().contiguous()
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
    write(found, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(facts, indent=2) + "\n")


MAX_RANK = 1 << 17
UNSUPPORTED = (  # features that `LoraLinear` does not compute
    *("fan_in_fan_out", "use_rslora", "use_dora", "use_qalora", "use_bdlora", "lora_bias"),
    *("rank_pattern", "alpha_pattern", "layers_to_transform", "layer_replication"),
    *("modules_to_save", "target_parameters", "trainable_token_indices", "alora_invocation_tokens"),
)
INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")  # the others change the model's own weights too


def read(folder: Path, shape: LlamaConfig) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Reads an adapter for a model of this shape: its config, and its tensors in fp32 by our names.

    Raises ValueError for files that are missing or damaged, for an adapter of another model, and, by name, for what
    `LoraLinear` does not compute.
    """
    facts, tensors = read_facts(folder), read_tensors(folder)
    config = read_config(folder / CONFIG, facts, folder / WEIGHTS, tensors)
    there = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors}
    check_all_there(folder / WEIGHTS, facts, there, shape)
    found: dict[str, Tensor] = {}
    for block in range(shape.num_layers):
        for path, matrix in adapted_matrices(shape, config).items():
            of_a, of_b = [], []
            for target, span in matrix.spans.items():
                a, b = (peft_name(block, path, target, kind) for kind in ("lora_A", "lora_B"))
                of_a.append(take(tensors, a, [config.rank, matrix.in_features], folder / WEIGHTS))
                of_b.append(take(tensors, b, [span.rows.stop - span.rows.start, config.rank], folder / WEIGHTS))
            found[f"blocks.{block}.{path}.lora_A"] = torch.cat(of_a)
            found[f"blocks.{block}.{path}.lora_B"] = torch.cat(of_b)
    if tensors:
        raise ValueError(
            f"{folder / WEIGHTS}: unexpected tensor {next(iter(tensors))[:99]}; an adapter of another model?"
        )
    return config, found


def read_facts(folder: Path) -> dict[str, Any]:
    """Reads the adapter_config.json of a folder. Raises ValueError where it is missing or damaged."""
    return read_json(folder / CONFIG, SAVED)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Reads the tensors of an adapter's folder, by PEFT's names. Raises ValueError where they are missing or damaged;
    what older versions of PEFT pickled is not opened.
    """
    path = folder / WEIGHTS
    if os.path.lexists(folder / PICKLED) and not os.path.lexists(path):
        raise ValueError(
            f"{folder / PICKLED}: a pickled adapter, as older versions of PEFT wrote it, which is not opened; convert "
            f"it in its folder with: python -c 'import torch, safetensors.torch as s; s.save_file({{k: v.contiguous() "
            f'for k, v in torch.load("{PICKLED}", weights_only=True).items()}}, "{WEIGHTS}")\''
        )
    check_safetensors(path, SAVED)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or cut short ({error})") from None


def check_all_there(path: Path, facts: dict[str, Any], there: Collection[str], shape: LlamaConfig) -> None:
    """Raises ValueError where `facts` name a layer of the model as adapted of which the file `path` has no tensors.
    `there`: the layers of which it has some. Which layers a regular expression names is not asked.
    """
    targets, chosen = facts.get("target_modules"), facts.get("layers_to_transform")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        return
    if facts.get("exclude_modules") or not isinstance(chosen, list | int | None):
        return
    blocks = [chosen] if isinstance(chosen, int) else chosen
    for parts in published_tensors(replace(shape, tied=False)).values():
        for module in (part.name.removesuffix(".weight") for part in parts):
            block = re.search(r"\.(\d+)\.", module)
            is_meant = blocks is None or (block is not None and int(block[1]) in blocks)
            if is_meant and module not in there and any(f".{module}".endswith(f".{name}") for name in targets):
                raise ValueError(f"{path}: no tensors of {module}, which {CONFIG} says is adapted; get the whole file")


def check_numbers(path: Path, facts: dict[str, Any]) -> None:
    """Raises ValueError for a rank, an alpha or a dropout in the file `path` that is none."""
    rank, alpha, dropout = facts.get("r"), facts.get("lora_alpha"), facts.get("lora_dropout", 0.0)
    is_rank = type(rank) is int and 0 < rank <= MAX_RANK
    if not (is_rank and is_number(alpha) and alpha > 0 and is_number(dropout) and 0 <= dropout < 1):
        raise ValueError(
            f"{path}: r = {shown(rank)}, lora_alpha = {shown(alpha)}, lora_dropout = {shown(dropout)}; "
            f"expected a positive integer, {MAX_RANK:,} at most, a positive number, and a number from 0 to 1"
        )


def take(tensors: dict[str, Tensor], name: str, shape: list[int], path: Path) -> Tensor:
    """Takes a tensor out of those of the file `path`, as fp32. Raises ValueError where it is absent or of another
    shape.
    """
    if name not in tensors:
        raise ValueError(f"{path}: no tensor {name}; an adapter of another model?")
    tensor = tensors.pop(name)
    if list(tensor.shape) != shape:
        raise ValueError(f"{path}: {name} has shape {list(tensor.shape)}, model and rank ask for {shape}")
    return tensor.float()


def read_config(path: Path, facts: dict[str, Any], weights: Path, names: Iterable[str]) -> LoraConfig:
    """The config of an adapter: `facts` are those of the file `path`, and which layers it adapts is seen by the `names`
    of the tensors in the file `weights`. Raises ValueError for what `LoraLinear` does not compute.
    """
    used = [key for key in UNSUPPORTED if facts.get(key)]
    used += [key for key, wanted in (("peft_type", "LORA"), ("bias", "none")) if facts.get(key, wanted) != wanted]
    used += ["init_lora_weights"] if facts.get("init_lora_weights") not in INITIAL else []
    if used:
        raise ValueError(f"{path}: {used[0]} = {shown(facts[used[0]])} is not supported")
    check_numbers(path, facts)
    rank, alpha, dropout = facts["r"], facts["lora_alpha"], facts.get("lora_dropout", 0.0)
    there = {name.split(".")[-3:][0] for name in names}  # ....q_proj.lora_A.weight
    if unknown := sorted(there - set(get_args(LoraTarget))):
        supported = ", ".join(get_args(LoraTarget))
        raise ValueError(f"{weights}: adapts {', '.join(unknown[:5])[:200]}; supported: {supported}")
    if not there:
        raise ValueError(f"{weights}: no tensors; an adapter without layers")
    targets = tuple(target for target in get_args(LoraTarget) if target in there)
    try:
        return LoraConfig(rank=rank, alpha=alpha, dropout=dropout, targets=targets)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
