"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685) on the linear layers of a Llama whose own weights stay.

    y = x W^T + s * drop(x) A^T B^T        A [r, D], B [out, r], s = alpha / r; B starts at zero

Adapters belong to the published layers (q_proj, ..., down_proj). Several of those are one matrix here, so their As lie
below each other, and so do their Bs (`adapted_linear` of logtrain_kernels). No gradient of W is computed.

What is dropped is a pure function of (seed, epoch, row, position in it, layer, feature): a resumed run, a recomputed
block and any number of ranks drop the same elements.
"""

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from logtrain.model.llama import Llama, LlamaConfig
from logtrain_kernels import adapted_linear, dropout_steps

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Rows = Callable[[str, int, int], Iterable[Tensor]]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: int = 0
    """Rank of the adapters. 0: none, all weights are trained."""
    alpha: float = 32.0
    """What an adapter adds counts alpha / rank times."""
    dropout: float = 0.0
    """Share of an adapter's inputs that are dropped in training, to the nearest of 65,536 steps."""
    targets: tuple[Target, ...] = get_args(Target)
    """Layers with adapters, by their Hugging Face names."""

    def __post_init__(self):
        if self.rank < 0 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora: rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}: expected rank >= 0, alpha > 0, "
                f"0 <= dropout < 1"
            )
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"lora.targets = {self.targets}: expected at least one layer, each once")


class Adapter(NamedTuple):
    """Where the adapter of one published layer lies."""

    target: Target
    columns: slice
    """of our matrix's output, so rows of W"""
    rows: slice
    """of the Bs, stacked"""
    ranks: slice
    """rows of the As, stacked"""


def adapters(shape: LlamaConfig, config: LoraConfig) -> dict[str, list[Adapter]]:
    """Our matrices of a block -> their adapters, in the order of their rows."""
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    sizes: dict[str, dict[Target, int]] = {
        "attention.qkv": {"q_proj": q, "k_proj": kv, "v_proj": kv},
        "attention.out": {"o_proj": hidden},
        "feed_forward.gate_up": {"gate_proj": inner, "up_proj": inner},
        "feed_forward.down": {"down_proj": hidden},
    }
    found: dict[str, list[Adapter]] = {}
    for path, targets in sizes.items():
        column = row = rank = 0
        for target, size in targets.items():
            if target in config.targets:
                places = slice(column, column + size), slice(row, row + size), slice(rank, rank + config.rank)
                found.setdefault(path, []).append(Adapter(target, *places))
                row, rank = row + size, rank + config.rank
            column += size
    return found


def in_features(shape: LlamaConfig, path: str) -> int:
    """Of one of our matrices of a block."""
    sizes = {"attention.out": shape.num_heads * shape.head_dim, "feed_forward.down": shape.intermediate_size}
    return sizes.get(path, shape.hidden_size)


def num_parameters(shape: LlamaConfig, config: LoraConfig) -> int:
    """Of all adapters."""
    with torch.device("meta"):
        model = Llama(shape)
    adapt(model, config, torch.bfloat16)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


class LoraLinear(nn.Module):
    """One of our matrices with its adapters. `keys`: the model's, of the tokens under way."""

    def __init__(self, base: nn.Linear, name: str, adapters: list[Adapter], config: LoraConfig, keys: list[Tensor]):
        super().__init__()
        self.places, self.keys = [adapter[1:] for adapter in adapters], keys
        self.scale, self.drop = config.alpha / config.rank, dropout_steps(config.dropout)
        salt = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)
        self.salt = torch.tensor(salt, device="cpu")
        self.weight = base.weight
        self.lora_A = nn.Parameter(torch.empty(adapters[-1].ranks.stop, base.in_features, device="meta"))
        self.lora_B = nn.Parameter(torch.empty(adapters[-1].rows.stop, config.rank, device="meta"))

    def forward(self, x_TD: Tensor) -> Tensor:
        tensors = x_TD, self.weight, self.lora_A, self.lora_B
        if not (self.drop and torch.is_grad_enabled()):
            return adapted_linear(*tensors, self.places, self.scale)
        assert len(self.keys) == 1, "the batch has no keys to draw dropout from"
        return adapted_linear(*tensors, self.places, self.scale, self.keys[0], self.salt, self.drop)


def adapt(model: Llama, config: LoraConfig, dtype: torch.dtype) -> None:
    """Freeze a meta model's own weights, in `dtype`, and put fp32 adapters beside them."""
    model.to(dtype).requires_grad_(False)
    for i, block in enumerate(model.blocks):
        for path, of_matrix in adapters(model.config, config).items():
            base = block.get_submodule(path)
            block.set_submodule(path, LoraLinear(base, f"blocks.{i}.{path}", of_matrix, config, model.keys))


# ---- where its weights come from and go to


def new_rows(base: Rows, shape: LlamaConfig, config: LoraConfig, seed: int) -> Rows:
    """The model's own weights from `base` and new adapters: B zero, A uniform within 1 / sqrt(D), as PEFT draws it,
    from (seed, its name) alone.
    """

    def rows(name: str, start: int, stop: int) -> Iterable[Tensor]:
        if name.endswith("lora_B"):
            return (torch.zeros(stop - start, config.rank),)
        if name.endswith("lora_A"):
            path = ".".join(name.split(".")[2:4])
            width = in_features(shape, path)
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            whole = torch.empty(adapters(shape, config)[path][-1].ranks.stop, width)
            return (whole.uniform_(-(width**-0.5), width**-0.5, generator=generator)[start:stop],)
        return base(name, start, stop)

    return rows


def merged(
    tensors: Iterable[tuple[str, Tensor]], shape: LlamaConfig, config: LoraConfig
) -> Iterator[tuple[str, Tensor]]:
    """Named full tensors of an adapted model -> those of a plain one, in the same order: W + s B A, in fp32."""
    layout, held = adapters(shape, config), {}
    for name, tensor in tensors:
        stem, _, kind = name.rpartition(".")
        path = ".".join(stem.split(".")[2:])
        if path not in layout:
            yield name, tensor
            continue
        held[kind] = tensor.to(torch.float32, copy=kind == "weight")  # the live model keeps its own
        if kind == "lora_B":  # the last of the three
            for _, columns, rows, ranks in layout[path]:
                held["weight"][columns].addmm_(
                    held["lora_B"][rows], held["lora_A"][ranks], alpha=config.alpha / config.rank
                )
            yield f"{stem}.weight", held["weight"]


def merged_rows(
    base: Rows, tensors: Mapping[str, Tensor], shape: LlamaConfig, config: LoraConfig, name: str, start: int, stop: int
) -> Iterable[Tensor]:
    """Rows of a plain model with an adapter's As and Bs (`tensors`, by our names) merged into it, in fp32."""
    stem = name.removesuffix(".weight")
    layout = adapters(shape, config).get(".".join(stem.split(".")[2:]))
    if not layout:
        yield from base(name, start, stop)
        return
    whole = torch.cat([piece.float() for piece in base(name, 0, sys.maxsize)])
    a_RD, b_Or = tensors[f"{stem}.lora_A"], tensors[f"{stem}.lora_B"]
    for _, columns, rows, ranks in layout:
        whole[columns].addmm_(b_Or[rows], a_RD[ranks], alpha=config.alpha / config.rank)
    yield whole[start:stop]
