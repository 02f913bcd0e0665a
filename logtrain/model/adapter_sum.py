"""Adapters added up: sum_i w_i s_i B_i A_i is itself an adapter, with the As below each other and the scaled Bs side by
side, of the ranks' sum. Nothing is rounded but w_i s_i B_i, once, in fp32.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import tomli_w
import torch
from torch import Tensor

from logtrain.core.atomic import new_folder
from logtrain.core.checksums import check_folder, write_checksums
from logtrain.core.lineage import parent_of, write_lineage
from logtrain.model import hf, peft
from logtrain.model.base import base_folder, read_base, read_reference, write_base
from logtrain.model.card import write_card
from logtrain.model.config import LoraConfig, LoraTarget
from logtrain.model.llama import LlamaConfig
from logtrain.model.lora import adapted_matrices
from logtrain.model.published import GENERATION, called, check_adapter
from logtrain.text import template_source
from logtrain.text.tokenizer import Tokenizer


def add_adapters_up(output: Path, folders: Sequence[Path], factors: Sequence[float], settings: dict[str, Any]) -> int:
    """Write the sum of adapters of one model to `output`, which must not exist; -> its rank. `settings`: for card and
    lineage. Tokenizer, template and generation_config.json are those of the first folder.

    Raises ValueError for adapters of different models, and for features that `peft.read` does not compute.
    """
    for folder in folders:
        check_folder(folder)
    bases = [read_base(base_folder(folder)) for folder in folders]
    for folder, base in zip(folders[1:], bases[1:], strict=True):
        if base.sha256 != bases[0].sha256:
            raise ValueError(
                f"{folder}: an adapter of {base.path}, {folders[0]} one of {bases[0].path}; not of one model"
            )
    shape, first = hf.read_config(bases[0].path), folders[0]
    adapters = [peft.read(folder, shape) for folder in folders]
    config, tensors = summed(adapters, factors, shape)
    if lost := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
        names = (str(folder) for folder, (_, own) in zip(folders, adapters, strict=True) if not are_finite(own))
        where = next(names, f"weights = {' '.join(map(str, factors))}")
        raise ValueError(f"{where}: numbers of {lost} are not finite; the adapter is damaged, or its weight too large")
    with new_folder(output) as aside:
        peft.save(aside, tensors, shape, config, str(bases[0].path))
        with suppress(ValueError):  # an adapter of others may have no tokenizer of its own
            for file in Tokenizer.load(first).files:
                hf.copy(file, aside)
        for name in (template_source.FILE, GENERATION):
            if (first / name).exists() and not (aside / name).exists():
                hf.copy(first / name, aside)
        hf.leave_one_template(aside)
        dtype = read_reference(first).get("dtype")
        write_base(aside, output, bases[0], dtype if dtype in ("float32", "bfloat16") else "bfloat16")
        write_card(aside, output.name, "adapter", bases[0], recipe=tomli_w.dumps(settings))
        write_lineage(aside, (parent_of("adapter", folder) for folder in folders), settings)
        with called(aside, output):
            check_adapter(aside, bases[0].path, shape, trained_template=False)
        write_checksums(aside)
    return config.rank


def are_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether all numbers of an adapter are."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def summed(
    adapters: Sequence[tuple[LoraConfig, Mapping[str, Tensor]]], factors: Sequence[float], shape: LlamaConfig
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The sum of adapters as one: its config, whose scale is 1, and its tensors, fp32, by our names. An adapter that
    leaves a layer alone counts as zero there.
    """
    rank = sum(config.rank for config, _ in adapters)
    targets = tuple(t for t in get_args(LoraTarget) if any(t in config.targets for config, _ in adapters))
    whole = LoraConfig(rank=rank, alpha=float(rank), targets=targets)
    found: dict[str, Tensor] = {}
    for path, matrix in adapted_matrices(shape, whole).items():
        for block in range(shape.num_layers):
            a_RD, b_Or = torch.zeros(matrix.shape_of_a), torch.zeros(matrix.shape_of_b)
            begin = 0
            for (config, tensors), factor in zip(adapters, factors, strict=True):
                own = adapted_matrices(shape, config).get(path)
                for target, span in own.spans.items() if own else ():
                    place, name = matrix.spans[target], f"blocks.{block}.{path}"
                    start = place.ranks.start + begin
                    a_RD[start : start + config.rank] = tensors[f"{name}.lora_A"][span.ranks]
                    b_or = tensors[f"{name}.lora_B"][span.rows] * (factor * config.scale)
                    b_Or[place.rows, begin : begin + config.rank] = b_or
                begin += config.rank
            found[f"blocks.{block}.{path}.lora_A"], found[f"blocks.{block}.{path}.lora_B"] = a_RD, b_Or
    return whole, found
