"""Chooses the next token of each sequence from its logits.

The logits pass these steps, in the order of transformers: the repetition penalty (Keskar et al. 2019,
arXiv:1909.05858) with other changes (logits.py), the temperature, top-k (Fan et al. 2018, arXiv:1805.04833), top-p
(Holtzman et al. 2019, arXiv:1904.09751), min-p (Nguyen et al. 2024, arXiv:2407.01082), and the draw.

A draw inverts the cumulative distribution at a number that depends on (seed, sequence, position) alone, not on the
other sequences of its batch.

Shapes in names: S sequences, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from logtrain.generation.config import SamplingConfig


def uniform(seed: int, number: int, position: int) -> float:
    """A random number in [0, 1) for the token at `position` of sequence `number`, by a counter-based generator
    (Philox).
    """
    counter = np.array([position, number, 0, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=np.uint64(seed), counter=counter)).random()


def penalised(logits_V: Tensor, seen_V: Tensor, penalty: float) -> Tensor:
    """Logits [V] after the repetition penalty. `seen_V`: bool, whether a token is in the sequence already."""
    lowered_V = torch.where(logits_V < 0, logits_V * penalty, logits_V / penalty)
    return torch.where(seen_V, lowered_V, logits_V)


def distribution(logits_SV: Tensor, configs: Sequence[SamplingConfig]) -> Tensor:
    """Probabilities of the next token, fp32 [S, V], each row by its own config, whose temperature must be above 0."""

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(config, name) for config in configs], device=logits_SV.device)[:, None]

    z_SV = logits_SV / column("temperature")
    if most := max(config.top_k for config in configs):
        k_S1 = column("top_k")
        best_Sk = z_SV.topk(min(most, z_SV.shape[1])).values
        least_S1 = best_Sk.gather(1, (k_S1 - 1).clamp(0, best_Sk.shape[1] - 1))
        z_SV = z_SV.masked_fill((k_S1 > 0) & (z_SV < least_S1), float("-inf"))
    if min(config.top_p for config in configs) < 1:
        ordered_SV, token_SV = z_SV.sort(dim=-1)
        beyond_SV = ordered_SV.softmax(-1).cumsum(-1) <= 1 - column("top_p")  # summed from the least likely on
        beyond_SV[:, -1] = False
        z_SV = z_SV.masked_fill(torch.zeros_like(beyond_SV).scatter(1, token_SV, beyond_SV), float("-inf"))
    if max(config.min_p for config in configs):
        least_S1 = z_SV.max(-1, keepdim=True).values + column("min_p").log()
        z_SV = z_SV.masked_fill(z_SV < least_S1, float("-inf"))
    return z_SV.softmax(-1)


def draw(p_SV: Tensor, uniform_S: Sequence[float]) -> Tensor:
    """Token ids, int64 [S]: in each row the first at which the cumulative probability exceeds its number of
    `uniform_S`.
    """
    cumulative_SV = p_SV.double().cumsum(-1)
    at_S1 = torch.tensor(uniform_S, dtype=torch.float64, device=p_SV.device)[:, None] * cumulative_SV[:, -1:]
    return torch.searchsorted(cumulative_SV, at_S1, right=True).squeeze(1).clamp_(max=p_SV.shape[1] - 1)
