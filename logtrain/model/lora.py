"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685) on the linear layers of a Llama whose own weights stay.

    y = x W^T + s * drop(x) A^T B^T        A [r, D], B [out, r], s = alpha / r; B starts at zero

An adapter belongs to a published layer (q_proj, ..., down_proj). Several of those are one matrix here, so their As lie
below each other, and so do their Bs (`adapted_linear` of logtrain_kernels). No gradient of W is computed.

What is dropped is a pure function of (seed, epoch, row, position in it, layer, feature): a resumed run, a recomputed
block and any number of ranks drop the same elements.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor, nn

from logtrain.model.config import LoraConfig, LoraTarget
from logtrain.model.llama import Llama, LlamaConfig
from logtrain.model.weights import WeightSource, generator_of
from logtrain_kernels import adapted_linear, dropout_steps


class AdapterSpan(NamedTuple):
    """Which parts of a matrix and of its As and Bs belong to the adapter of one published layer."""

    target: LoraTarget
    columns: slice
    """of our matrix's output, so rows of W"""
    rows: slice
    """of the Bs, stacked"""
    ranks: slice
    """rows of the As, stacked"""


def adapter_spans(shape: LlamaConfig, config: LoraConfig) -> dict[str, list[AdapterSpan]]:
    """Paths of our matrices within a block -> their adapters, in the order of their rows; only those that have any."""
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    sizes: dict[str, dict[LoraTarget, int]] = {
        "attention.qkv": {"q_proj": q, "k_proj": kv, "v_proj": kv},
        "attention.out": {"o_proj": hidden},
        "feed_forward.gate_up": {"gate_proj": inner, "up_proj": inner},
        "feed_forward.down": {"down_proj": hidden},
    }
    found: dict[str, list[AdapterSpan]] = {}
    for path, targets in sizes.items():
        column = row = rank = 0
        for target, size in targets.items():
            if target in config.targets:
                parts = slice(column, column + size), slice(row, row + size), slice(rank, rank + config.rank)
                found.setdefault(path, []).append(AdapterSpan(target, *parts))
                row, rank = row + size, rank + config.rank
            column += size
    return found


def in_features(shape: LlamaConfig, path: str) -> int:
    """Input features of our matrix at `path` within a block."""
    sizes = {"attention.out": shape.num_heads * shape.head_dim, "feed_forward.down": shape.intermediate_size}
    return sizes.get(path, shape.hidden_size)


def num_adapter_parameters(shape: LlamaConfig, config: LoraConfig) -> int:
    """Elements of the As and Bs of all layers; 0 without adapters."""
    if not config.rank:
        return 0
    of_block = (
        spans[-1].ranks.stop * in_features(shape, path) + spans[-1].rows.stop * config.rank
        for path, spans in adapter_spans(shape, config).items()
    )
    return shape.num_layers * sum(of_block)


class LoraLinear(nn.Module):
    """One of our matrices with its adapters."""

    def __init__(self, base: nn.Linear, name: str, spans: list[AdapterSpan], config: LoraConfig, seeds: list[Tensor]):
        """`name`: of the matrix in the model, from which its part of the dropout is derived. `seeds`: the model's list
        of seeds of the tokens under way.
        """
        super().__init__()
        self.spans, self.seeds = [span[1:] for span in spans], seeds
        self.scale, self.drop = config.alpha / config.rank, dropout_steps(config.dropout)
        salt = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)
        self.salt = torch.tensor(salt, device="cpu")
        self.weight = base.weight
        self.lora_A = nn.Parameter(torch.empty(spans[-1].ranks.stop, base.in_features, device="meta"))
        self.lora_B = nn.Parameter(torch.empty(spans[-1].rows.stop, config.rank, device="meta"))

    def forward(self, x_TD: Tensor) -> Tensor:
        tensors = x_TD, self.weight, self.lora_A, self.lora_B
        if not (self.drop and torch.is_grad_enabled()):
            return adapted_linear(*tensors, self.spans, self.scale)
        assert len(self.seeds) == 1, "the batch has no seeds to draw dropout from"
        return adapted_linear(*tensors, self.spans, self.scale, self.seeds[0], self.salt, self.drop)


def add_adapters(model: Llama, config: LoraConfig, dtype: torch.dtype) -> None:
    """Freeze a meta model's own weights, in `dtype`, and put fp32 adapters beside them."""
    model.to(dtype).requires_grad_(False)
    for i, block in enumerate(model.blocks):
        for path, spans in adapter_spans(model.config, config).items():
            base = block.get_submodule(path)
            block.set_submodule(path, LoraLinear(base, f"blocks.{i}.{path}", spans, config, model.seeds))


def path_in_block(name: str) -> str:
    """blocks.3.attention.qkv.lora_A -> attention.qkv; of a parameter outside the blocks something that is no path."""
    return ".".join(name.split(".")[2:-1])


# ---- where the weights of adapters come from, and where they go


class InitialAdapters:
    """The model's own weights from `base`, and new adapters: B zero, A uniform within 1 / sqrt(D), as PEFT draws it,
    from (seed, its name) alone.
    """

    def __init__(self, base: WeightSource, shape: LlamaConfig, config: LoraConfig, seed: int):
        self.base, self.shape, self.config, self.seed = base, shape, config, seed
        self.spans = adapter_spans(shape, config)

    def rows(self, name: str, start: int, stop: int) -> Iterable[Tensor]:
        if name.endswith("lora_B"):
            return (torch.zeros(stop - start, self.config.rank),)
        if name.endswith("lora_A"):
            path = path_in_block(name)
            width = in_features(self.shape, path)
            whole = torch.empty(self.spans[path][-1].ranks.stop, width)
            whole.uniform_(-(width**-0.5), width**-0.5, generator=generator_of(self.seed, name))
            return (whole[start:stop],)
        return self.base.rows(name, start, stop)


class GivenAdapters:
    """The model's own weights from `base`, and the As and Bs of `tensors`, by our names."""

    def __init__(self, base: WeightSource, tensors: Mapping[str, Tensor]):
        self.base, self.tensors = base, tensors

    def rows(self, name: str, start: int, stop: int) -> Iterable[Tensor]:
        return (self.tensors[name][start:stop],) if name in self.tensors else self.base.rows(name, start, stop)


class MergedAdapters:
    """Weights of a plain model: those of `base` with the As and Bs of `tensors` (by our names) merged in, in fp32."""

    def __init__(self, base: WeightSource, tensors: Mapping[str, Tensor], shape: LlamaConfig, config: LoraConfig):
        self.base, self.tensors, self.config = base, tensors, config
        self.spans = adapter_spans(shape, config)

    def rows(self, name: str, start: int, stop: int) -> Iterable[Tensor]:
        spans = self.spans.get(path_in_block(name))
        if not spans:
            yield from self.base.rows(name, start, stop)
            return
        stem = name.removesuffix(".weight")
        whole = torch.cat([piece.float() for piece in self.base.rows(name, 0, sys.maxsize)])
        merge(whole, self.tensors[f"{stem}.lora_A"], self.tensors[f"{stem}.lora_B"], spans, self.config)
        yield whole[start:stop]


def merged(
    tensors: Iterable[tuple[str, Tensor]], shape: LlamaConfig, config: LoraConfig
) -> Iterator[tuple[str, Tensor]]:
    """Named full tensors of a model with adapters -> those of a plain one, one at a time and in the same order."""
    spans, held = adapter_spans(shape, config), {}
    for name, tensor in tensors:
        path = path_in_block(name)
        if path not in spans:
            yield name, tensor
            continue
        stem, _, kind = name.rpartition(".")
        held[kind] = tensor.to(torch.float32, copy=kind == "weight")  # the live model keeps its own
        if kind == "lora_B":  # the last of the three
            merge(held["weight"], held["lora_A"], held["lora_B"], spans[path], config)
            yield f"{stem}.weight", held["weight"]


def merge(weight_OD: Tensor, a_RD: Tensor, b_Or: Tensor, spans: list[AdapterSpan], config: LoraConfig) -> None:
    """W += s B A for every adapter of a matrix, in place; all fp32."""
    for _, columns, rows, ranks in spans:
        weight_OD[columns].addmm_(b_Or[rows], a_RD[ranks], alpha=config.alpha / config.rank)
