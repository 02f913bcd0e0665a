"""Adapters that others have trained, merged into the weights of their model: whatever PEFT merges of LoRA.

    adapter = Adapter(folder, hf.read_config(base))
    weights = adapter.merged(hf.Weights(base, hf.read_config(base)))        the weights of a model of adapter.shape

For each layer of the published model that the file has tensors of, in fp32:

    LoRA        W + s B A      s = alpha / r, or alpha / sqrt(r) with use_rslora; alpha_pattern and rank_pattern have
                               others for layers whose names they match
    DoRA        m (W + s B A) / |W + s B A|                row by row (Liu et al. 2024, arXiv:2402.09353)
    embedding   W + s (B A)^T
    whole       another W (modules_to_save), also of another number of rows where the vocabulary was resized
    tokens      other rows of W (trainable_token_indices)

A tied model whose head and embedding no longer agree is not tied any more. Sources: Hu et al. 2021 (arXiv:2106.09685),
Kalajdzievski 2023 (rsLoRA, arXiv:2312.03732).
"""

import math
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logtrain.core.untrusted import shown
from logtrain.model import peft
from logtrain.model.hf_layout import is_number, published_tensors
from logtrain.model.llama import LlamaConfig
from logtrain.model.weights import WeightSource

NAME = re.compile(  # of a tensor; older versions of PEFT left the adapter's own name in it
    r"(?:base_model\.model\.)?(?P<module>(?:model\.)?[\w.]*?\w)\."
    r"(?:(?P<lora>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.\w+)??(?:\.weight)?"
    r"|(?P<tokens>token_adapter\.trainable_tokens_delta)(?:\.\w+)?"
    r"|(?P<unused>(?:token_adapter\.|modules_to_save\.)*(?:original_module|base_layer)\.weight)"
    r"|(?:modules_to_save\.(?:\w+\.)?)?(?P<whole>weight))"
)
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
UNSUPPORTED = (  # that PEFT cannot merge into a Llama, or that is no part of LoRA
    *("use_qalora", "use_bdlora", "lora_bias", "layer_replication", "target_parameters", "alora_invocation_tokens"),
)
BY_MERGE = "; logtrain merge makes a model of it where PEFT can"
MAX_PATTERNS, LONGEST_PATTERN = 10_000, 200
STRANGE = re.compile(r"\)[*+{?]|[^\w.|()*+\\^$\[\]-]")


class NotComputed(ValueError):
    """An adapter with a feature that is not computed here, which PEFT may know."""


class Adapter:
    """An adapter's files, read whole. shape: of the model that it is merged into, by now."""

    def __init__(self, folder: Path, shape: LlamaConfig):
        """`shape`: of the model itself. Raises ValueError for files that are missing or damaged, for an adapter of
        another model, and, by name, for what is not merged.
        """
        self.config_file, self.weights_file = folder / peft.CONFIG, folder / peft.WEIGHTS
        self.facts = peft.read_facts(folder)
        self.patterns: dict[str, list[tuple[re.Pattern[str], float]]] = {}
        self.check_features()
        layout = published_tensors(replace(shape, tied=False))
        self.shapes = {part.name.removesuffix(".weight"): part.shape for parts in layout.values() for part in parts}
        self.parts: dict[str, dict[str, Tensor]] = {}  # by module and kind
        for name, tensor in peft.read_tensors(folder).items():
            self.sort_in(name, tensor)
        if not self.parts:
            raise ValueError(f"{self.weights_file}: no tensors; an adapter without layers")
        peft.check_all_there(self.weights_file, self.facts, self.parts, shape)
        self.shape = self.changed(shape)
        for module, parts in self.parts.items():
            self.check_module(module, parts)

    # ---- what is there

    def check_features(self) -> None:
        """Raises ValueError for a feature that is not merged, by its name."""
        facts = self.facts
        used = [key for key in UNSUPPORTED if facts.get(key)]
        used += ["peft_type"] if facts.get("peft_type", "LORA") != "LORA" else []
        used += ["init_lora_weights"] if facts.get("init_lora_weights") not in peft.INITIAL else []
        if used:
            raise NotComputed(f"{self.config_file}: {used[0]} = {shown(facts[used[0]])} is not supported{BY_MERGE}")
        peft.check_numbers(self.config_file, facts)
        for key in ("alpha_pattern", "rank_pattern"):
            patterns = facts.get(key) or {}
            if not isinstance(patterns, dict) or len(patterns) > MAX_PATTERNS or not all(map(is_pattern, patterns)):
                raise ValueError(f"{self.config_file}: {key} = {shown(patterns)}; expected numbers by names of layers")
            if not all(is_number(value) and value > 0 for value in patterns.values()):
                raise ValueError(f"{self.config_file}: {key} = {shown(patterns)}; expected positive numbers")
            self.patterns[key] = [(re.compile(rf"(.*\.)?({text})$"), value) for text, value in patterns.items()]

    def sort_in(self, name: str, tensor: Tensor) -> None:
        """Puts a tensor of the file into `parts`. Raises ValueError for one of no layer of the model."""
        found = NAME.fullmatch(name)
        if found and found["unused"]:
            return
        module = found["module"] if found else ""
        if not found or module not in self.shapes:
            raise ValueError(f"{self.weights_file}: unexpected tensor {name[:99]}; an adapter of another model?")
        kind = found["lora"] or found["whole"] or "tokens"
        self.parts.setdefault(module, {})[kind] = tensor.float()

    def changed(self, shape: LlamaConfig) -> LlamaConfig:
        """Returns the shape of a model after the adapter. Raises ValueError where embedding and head have different
        numbers of rows.
        """
        embedding, head = self.parts.get(EMBEDDING, {}), self.parts.get(HEAD, {})
        rows = {module: len(self.parts[module]["weight"]) for module in (EMBEDDING, HEAD) if self.saved(module)}
        is_resized = any(count != shape.vocab_size for count in rows.values())
        if shape.tied and is_resized and not head:
            tied = True  # the new rows are of both
        elif shape.tied and not head and (embedding.keys() == {"tokens"} or self.facts.get("ensure_weight_tying")):
            tied = True  # as PEFT has trained it
        elif shape.tied and embedding.keys() == head.keys() == {"weight"}:
            tied = torch.equal(embedding["weight"], head["weight"])
        else:
            tied = shape.tied and not embedding and not head
        if is_resized and (len(set(rows.values())) > 1 or (not tied and len(rows) < 2)):
            counts = " and ".join(f"{module.rpartition('.')[2]} of {count} rows" for module, count in rows.items())
            raise ValueError(
                f"{self.weights_file}: has {counts}, the model {shape.vocab_size}: its vocabulary was resized, but not "
                f"for embed_tokens and lm_head alike"
            )
        return replace(shape, tied=tied, vocab_size=max(rows.values(), default=shape.vocab_size))

    def saved(self, module: str) -> bool:
        """Tells whether the file has all of a matrix."""
        saved = self.parts.get(module, {}).get("weight")
        return saved is not None and saved.ndim == 2

    def check_module(self, module: str, parts: dict[str, Tensor]) -> None:
        """Raises ValueError for tensors that are missing, or of other shapes than model and rank ask for."""
        shape = self.shapes[module]
        if module in (EMBEDDING, HEAD):
            shape = (self.shape.vocab_size, *shape[1:])
        rows, columns = shape if len(shape) == 2 else (shape[0], 0)
        rank = int(self.number(module, "r", "rank_pattern"))
        expected: dict[str, tuple[int, ...]] = {"weight": shape}
        if "lora_embedding_A" in parts or "lora_embedding_B" in parts:
            expected |= {"lora_embedding_A": (rank, rows), "lora_embedding_B": (columns, rank)}
            wanted = {"lora_embedding_A", "lora_embedding_B"}
            if self.facts.get("use_dora"):
                raise NotComputed(f"{self.config_file}: use_dora = true is not supported for {module}{BY_MERGE}")
        elif parts.keys() & {"lora_A", "lora_B", "lora_magnitude_vector"}:
            expected |= {"lora_A": (rank, columns), "lora_B": (rows, rank), "lora_magnitude_vector": (rows,)}
            wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if self.facts.get("use_dora") else set())
        else:
            wanted = set()
        if missing := sorted(wanted - parts.keys()):
            raise ValueError(
                f"{self.weights_file}: no tensor base_model.model.{module}.{missing[0]}.weight; an adapter of another "
                f"model?"
            )
        if "tokens" in parts:
            expected["tokens"] = (len(self.token_indices(module)), columns)
        for kind, tensor in parts.items():
            if expected.get(kind) != tuple(tensor.shape):
                name = "trainable_tokens_delta" if kind == "tokens" else kind if kind == "weight" else f"{kind}.weight"
                asked = list(expected[kind]) if kind in expected else "no such"
                raise ValueError(
                    f"{self.weights_file}: {module}.{name} has shape {list(tensor.shape)}, model and rank ask for "
                    f"{asked}"
                )

    def token_indices(self, module: str) -> list[int]:
        """Returns the rows of a matrix that were trained. Raises ValueError for what are no rows of it."""
        found: Any = self.facts.get("trainable_token_indices")
        if isinstance(found, dict):
            found = next((found[name] for name in found if f".{module}".endswith(f".{name}")), None)
        if not isinstance(found, list) or not all(type(id) is int and 0 <= id < self.shape.vocab_size for id in found):
            raise ValueError(f"{self.config_file}: trainable_token_indices: no ids of the vocabulary for {module}")
        return found

    def number(self, module: str, key: str, pattern_key: str) -> float:
        """Returns the rank or the alpha of a layer: that of the first pattern that its name matches, or else that of
        all.
        """
        return next((value for name, value in self.patterns[pattern_key] if name.match(module)), self.facts[key])

    # ---- the weights

    def merged(self, base: WeightSource) -> "MergedWeights":
        """Returns the weights of a model of `shape`; `base`: those of the model itself."""
        return MergedWeights(self, base)

    def merge(self, module: str, weight: Tensor) -> Tensor:
        """Returns the weight of a published layer, fp32, after the adapter; `weight`: the model's own, fp32, which may
        be changed.
        """
        parts = self.parts.get(module, {})
        weight = parts.get("weight", weight)
        rank = self.number(module, "r", "rank_pattern")
        scale = self.number(module, "lora_alpha", "alpha_pattern") / (
            math.sqrt(rank) if self.facts.get("use_rslora") else rank
        )
        if "lora_embedding_A" in parts:
            weight = weight + scale * (parts["lora_embedding_B"] @ parts["lora_embedding_A"]).T
        if "lora_A" in parts:
            weight = torch.addmm(weight, parts["lora_B"], parts["lora_A"], alpha=scale)  # as `lora.merge` does
        if "lora_magnitude_vector" in parts:
            weight = (parts["lora_magnitude_vector"] / torch.linalg.norm(weight, dim=1))[:, None] * weight
        if "tokens" in parts:
            weight = weight.clone()
            weight[self.token_indices(module)] = parts["tokens"]
        return weight


class MergedWeights:
    """A source of the weights of a model with an adapter merged in. shape: the model's."""

    def __init__(self, adapter: Adapter, base: WeightSource):
        self.adapter, self.base, self.shape = adapter, base, adapter.shape
        self.published = published_tensors(adapter.shape)

    def rows(self, name: str, start: int, stop: int) -> Iterable[Tensor]:
        """Yields rows [start, stop) of our parameter `name`, in pieces."""
        modules = [part.name.removesuffix(".weight") for part in self.published[name]]
        if not any(module in self.adapter.parts for module in modules) and name != "head.weight":
            return self.base.rows(name, start, stop)
        return (torch.cat([self.adapter.merge(*module) for module in self.of_base(name)])[start:stop],)

    def of_base(self, name: str) -> Iterable[tuple[str, Tensor]]:
        """Yields the published layers of a parameter, each with the model's own weight in fp32."""
        try:
            whole = torch.cat([piece.float() for piece in self.base.rows(name, 0, sys.maxsize)])
        except KeyError:  # of a model that was tied
            whole = torch.cat([piece.float() for piece in self.base.rows("embedding.weight", 0, sys.maxsize)])
        parts = self.published[name]
        if len(parts) == 1:
            yield parts[0].name.removesuffix(".weight"), whole
            return
        for part, rows in zip(parts, whole.split([part.shape[0] for part in parts]), strict=True):
            yield part.name.removesuffix(".weight"), rows


def is_pattern(text: object) -> bool:
    """Tells whether a text is a regular expression that is found or not found at once: of names, with few stars and
    none behind a group.
    """
    if not isinstance(text, str) or not 0 < len(text) <= LONGEST_PATTERN or STRANGE.search(text):
        return False
    try:
        re.compile(text)
    except re.error:
        return False
    return len(re.findall(r"[*+]", text)) <= 3
