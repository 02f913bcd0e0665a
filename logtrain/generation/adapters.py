"""Several adapters (LoRA) beside one model, of which each token of a batch has its own or none.

    y = x W^T + sum over adapters n of  [the token's adapter is n] s_n x A_n^T B_n^T

The As of all adapters are one matrix, so a step computes x A^T for all of them and sets to zero what is not a token's
own. That is as many multiplications as adapters have ranks together, some per cent of the model's own for four of rank
16, and the shapes do not depend on which adapters a batch has, as a CUDA graph needs it.

Shapes in names: T tokens, D in features, O out features, R ranks of all adapters of a matrix.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from logtrain.model.config import LoraConfig
from logtrain.model.llama import Llama
from logtrain.model.lora import adapted_matrices

Adapter = tuple[LoraConfig, Mapping[str, Tensor]]
"""An adapter's config, and its As and Bs by our names, as `peft.read` gives them."""


class Adapters:
    """The adapters beside a model. count: how many there are."""

    def __init__(self, count: int):
        self.count = count
        self.choice_T: Tensor | None = None

    def choose(self, adapters_T: Tensor | None) -> None:
        """Say which adapter each token of the next step has: int64, counted from 1, 0 for none; None: none has one."""
        self.choice_T = adapters_T


class AdaptedLinear(nn.Module):
    """One of the model's matrices with all adapters of it: [T, D] -> [T, O]."""

    def __init__(self, base: nn.Module, adapters: Adapters, parts: Sequence["Part"]):
        """`base`: what computes the model's own product."""
        super().__init__()
        self.base, self.adapters = base, adapters
        self.a_RD = torch.cat([part.a_rD for part in parts])
        owners = [torch.full((len(part.a_rD),), part.adapter, device=self.a_RD.device) for part in parts]
        self.owner_R = torch.cat(owners)
        self.products: list[tuple[slice, slice, Tensor]] = []  # columns of y, of x A^T, and the transposed Bs [R, O]
        start, by_columns = 0, {}
        for part in parts:  # those of one published layer are neighbours
            ranks = slice(start, start := start + len(part.a_rD))
            before = by_columns.get(part.columns.start)
            joined = (slice(before[1].start, ranks.stop), [*before[2], part.b_rO]) if before else (ranks, [part.b_rO])
            by_columns[part.columns.start] = (part.columns, *joined)
        self.products = [(columns, ranks, torch.cat(bs)) for columns, ranks, bs in by_columns.values()]

    def forward(self, x_TD: Tensor) -> Tensor:
        """The product [T, O] of each token by its own adapter."""
        y_TO = self.base(x_TD)
        if (choice_T := self.adapters.choice_T) is None:
            return y_TO
        inner_TR = (x_TD @ self.a_RD.T) * (choice_T[:, None] == self.owner_R)
        for columns, ranks, b_RO in self.products:
            y_TO[:, columns].addmm_(inner_TR[:, ranks], b_RO)
        return y_TO


class Part:
    """What one adapter adds to one published layer."""

    def __init__(self, adapter: int, columns: slice, a_rD: Tensor, b_rO: Tensor):
        """`adapter`: its number. `columns`: the layer's of y. `b_rO`: its B, transposed, with the scale."""
        self.adapter, self.columns, self.a_rD, self.b_rO = adapter, columns, a_rD, b_rO


def serve_adapters(model: Llama, adapters: Sequence[Adapter]) -> None:
    """Put adapters beside a model, which they leave as it is; requests name them by their numbers from 1 on."""
    served, weight = Adapters(len(adapters)), model.embedding.weight
    for i, block in enumerate(model.blocks):
        parts: dict[str, list[tuple[str, Part]]] = {}
        for number, (config, tensors) in enumerate(adapters, 1):
            for path, matrix in adapted_matrices(model.config, config).items():
                a_RD, b_Or = (tensors[f"blocks.{i}.{path}.{kind}"].to(weight) for kind in ("lora_A", "lora_B"))
                for target, span in matrix.spans.items():
                    b_rO = (b_Or[span.rows] * config.scale).T.contiguous()
                    parts.setdefault(path, []).append((target, Part(number, span.columns, a_RD[span.ranks], b_rO)))
        for path, found in parts.items():
            ordered = [part for _, part in sorted(found, key=lambda item: (item[1].columns.start, item[1].adapter))]
            block.set_submodule(path, AdaptedLinear(block.get_submodule(path), served, ordered))


def adapters_of(model: Llama) -> Adapters | None:
    """The adapters that `serve_adapters` put beside a model, None if it has none."""
    return next((module.adapters for module in model.modules() if isinstance(module, AdaptedLinear)), None)
