"""AdamW and the learning rate of a step.

The rate is a pure function of (step, total steps): a resumed run needs no schedule state, and anyone can plot it
before the run.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: float = 1e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup_ratio: float = 0.1
    """Share of all steps over which the rate rises linearly to its peak."""
    min_lr_ratio: float = 0.0
    """Rate of the last step as a share of the peak (cosine and linear)."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    """Decoupled decay of the matrices; norm scales do not decay."""

    def __post_init__(self):
        for name, low, high in (("warmup_ratio", 0, 1), ("min_lr_ratio", 0, 1), ("beta1", 0, 1), ("beta2", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"optim.{name} = {getattr(self, name)} is outside [{low}, {high}]")
        for name in ("lr", "weight_decay", "eps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optim.{name} = {getattr(self, name)} must be a finite number >= 0")

    def lr_at(self, step: int, total_steps: int) -> float:
        """Learning rate of the update `step` (0-based) out of `total_steps`.

        The warm-up takes ceil(ratio * total) steps and its first already moves: (step + 1) / warm-up. The decay
        reaches `min_lr_ratio` after the last step (Loshchilov & Hutter 2017, arXiv:1608.03983, one cycle).
        """
        warmup = math.ceil(self.warmup_ratio * total_steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        progress = (step - warmup) / max(1, total_steps - warmup)
        share = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[
            self.schedule
        ]
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * share)


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), one fused kernel a step; one-dimensional parameters do not
    decay.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
