"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685) on the linear layers of a Llama whose own weights stay.

    y = x W^T + s * drop(x) A^T B^T        A [r, D], B [out, r], s = alpha / r; B starts at zero

An adapter belongs to a published layer (q_proj, ..., down_proj). Several of those are one matrix here, so their As lie
below each other, and so do their Bs (`adapted_linear` of logtrain_kernels). No gradient of W is computed.

What is dropped is a pure function of (seed, epoch, row, position in it, layer, feature): a resumed run, a recomputed
block and any number of ranks drop the same elements.

Shapes in names: D in features, O out features, r ranks of an adapter, R of all of a matrix's.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import prod

import torch
from torch import Tensor, nn

from logtrain.model.config import LoraConfig, LoraTarget
from logtrain.model.float8 import gathered
from logtrain.model.llama import Llama, LlamaConfig
from logtrain.model.weights import WeightSource, generator_of
from logtrain_kernels import AdapterSpan, Float8, Float8Recipe, adapted_linear, dropout_steps, float8_weight


@dataclass(frozen=True)
class AdaptedMatrix:
    """The place of the adapters of one of a block's matrices: which rows and ranks belong to which published layer."""

    in_features: int
    rank: int
    """The rank r of each adapter."""
    spans: dict[LoraTarget, AdapterSpan]
    """Each published layer's span, in the order of their rows."""

    @property
    def shape_of_a(self) -> tuple[int, int]:
        """The shape [R, D] of the As of all adapters, stacked."""
        return self.rank * len(self.spans), self.in_features

    @property
    def shape_of_b(self) -> tuple[int, int]:
        """The shape [O, r] of the Bs of all adapters, stacked."""
        return sum(span.rows.stop - span.rows.start for span in self.spans.values()), self.rank


def adapted_matrices(shape: LlamaConfig, config: LoraConfig) -> dict[str, AdaptedMatrix]:
    """Returns the matrices of a block that have adapters, by their paths within the block."""
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    layers: dict[str, tuple[int, dict[LoraTarget, int]]] = {  # in features, out features of each published layer
        "attention.qkv": (hidden, {"q_proj": q, "k_proj": kv, "v_proj": kv}),
        "attention.out": (q, {"o_proj": hidden}),
        "feed_forward.gate_up": (hidden, {"gate_proj": inner, "up_proj": inner}),
        "feed_forward.down": (inner, {"down_proj": hidden}),
    }
    found = {}
    for path, (in_features, out_features) in layers.items():
        spans: dict[LoraTarget, AdapterSpan] = {}
        column = row = rank = 0
        for target, size in out_features.items():
            if target in config.targets:
                columns, rows = slice(column, column + size), slice(row, row + size)
                spans[target] = AdapterSpan(columns, rows, slice(rank, rank + config.rank))
                row, rank = row + size, rank + config.rank
            column += size
        if spans:
            found[path] = AdaptedMatrix(in_features, config.rank, spans)
    return found


def num_adapter_parameters(shape: LlamaConfig, config: LoraConfig) -> int:
    """Returns the number of elements of the As and Bs of all layers; 0 without adapters."""
    matrices = adapted_matrices(shape, config).values()
    return shape.num_layers * sum(prod(matrix.shape_of_a) + prod(matrix.shape_of_b) for matrix in matrices)


class LoraLinear(nn.Module):
    """One of our matrices with its adapters: [T, D] -> [T, O]."""

    def __init__(self, base: nn.Linear, name: str, matrix: AdaptedMatrix, config: LoraConfig, seeds: list[Tensor]):
        """`name`: of the matrix in the model, from which its part of the dropout is derived. `seeds`: the model's list
        of seeds of the tokens under way.
        """
        super().__init__()
        self.spans, self.seeds = list(matrix.spans.values()), seeds
        self.scale, self.drop = config.scale, dropout_steps(config.dropout)
        salt = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)
        self.salt = torch.tensor(salt, device="cpu")
        self.weight = base.weight
        self.lora_A = nn.Parameter(torch.empty(matrix.shape_of_a, device="meta"))
        self.lora_B = nn.Parameter(torch.empty(matrix.shape_of_b, device="meta"))
        self.recipe: Float8Recipe | None = getattr(base, "recipe", None)  # of a layer that computes in float8
        self.frozen: Float8 | None = None

    def in_float8(self) -> tuple[Float8Recipe, Tensor, Tensor] | None:
        """Returns the recipe and W in float8, for a layer that computes so: as it was gathered, or cast once."""
        if self.recipe is None:
            return None
        weight = gathered(self.weight)
        if weight is None:
            weight = self.frozen = self.frozen or float8_weight(self.weight.detach(), self.recipe.scaling)
        return self.recipe, weight.values, weight.inverse

    def forward(self, x_TD: Tensor) -> Tensor:
        weight, a, b = self.weight, self.lora_A, self.lora_B
        if not (self.drop and torch.is_grad_enabled()):
            return adapted_linear(x_TD, weight, a, b, self.spans, self.scale, float8=self.in_float8())
        assert len(self.seeds) == 1, "the batch has no seeds to draw dropout from"
        dropout = self.seeds[0], self.salt, self.drop
        return adapted_linear(x_TD, weight, a, b, self.spans, self.scale, *dropout, self.in_float8())


def add_adapters(model: Llama, config: LoraConfig, dtype: torch.dtype) -> None:
    """Freezes a meta model's own weights, in `dtype`, and puts fp32 adapters beside them."""
    model.to(dtype).requires_grad_(False)
    for i, block in enumerate(model.blocks):
        for path, matrix in adapted_matrices(model.config, config).items():
            base = block.get_submodule(path)
            assert isinstance(base, nn.Linear)
            block.set_submodule(path, LoraLinear(base, f"blocks.{i}.{path}", matrix, config, model.seeds))


def path_in_block(name: str) -> str:
    """Returns attention.qkv for blocks.3.attention.qkv.lora_A; what is outside the blocks gives no such path."""
    return ".".join(name.split(".")[2:-1])


# ---- where the weights of adapters come from, and where they go


class InitialAdapters:
    """The model's own weights from `base`, and new adapters: B zero, A uniform within 1 / sqrt(D), as PEFT draws it,
    from (seed, its name) alone.
    """

    def __init__(self, base: WeightSource, shape: LlamaConfig, config: LoraConfig, seed: int):
        self.base, self.seed, self.matrices = base, seed, adapted_matrices(shape, config)

    def rows(self, name: str, start: int, stop: int) -> Iterable[Tensor]:
        """Yields rows [start, stop) of our parameter `name`, in pieces."""
        if not name.endswith(("lora_A", "lora_B")):
            return self.base.rows(name, start, stop)
        matrix = self.matrices[path_in_block(name)]
        if name.endswith("lora_B"):
            return (torch.zeros(matrix.shape_of_b)[start:stop],)
        bound = matrix.in_features**-0.5
        whole = torch.empty(matrix.shape_of_a).uniform_(-bound, bound, generator=generator_of(self.seed, name))
        return (whole[start:stop],)


class GivenAdapters:
    """The model's own weights from `base`, and the As and Bs of `tensors`, by our names."""

    def __init__(self, base: WeightSource, tensors: Mapping[str, Tensor]):
        self.base, self.tensors = base, tensors

    def rows(self, name: str, start: int, stop: int) -> Iterable[Tensor]:
        """Yields rows [start, stop) of our parameter `name`, in pieces."""
        return (self.tensors[name][start:stop],) if name in self.tensors else self.base.rows(name, start, stop)


def merged(
    tensors: Iterable[tuple[str, Tensor]], shape: LlamaConfig, config: LoraConfig
) -> Iterator[tuple[str, Tensor]]:
    """Yields the named full tensors of a plain model from those of one with adapters, one by one, in their order."""
    matrices, held = adapted_matrices(shape, config), {}
    for name, tensor in tensors:
        path = path_in_block(name)
        if path not in matrices:
            yield name, tensor
            continue
        stem, _, kind = name.rpartition(".")
        held[kind] = tensor.to(torch.float32, copy=kind == "weight")  # the live model keeps its own
        if kind == "lora_B":  # the last of the three
            merge(held["weight"], held["lora_A"], held["lora_B"], matrices[path], config.scale)
            yield f"{stem}.weight", held["weight"]


def merge(weight_OD: Tensor, a_RD: Tensor, b_Or: Tensor, matrix: AdaptedMatrix, scale: float) -> None:
    """Adds s B A to W for every adapter of a matrix, in place; all of them are fp32."""
    for span in matrix.spans.values():
        weight_OD[span.columns].addmm_(b_Or[span.rows], a_RD[span.ranks], alpha=scale)
