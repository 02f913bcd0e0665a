"""The settings of the optimizer and the course of its learning rate. Nothing here imports torch, so that `--help`
answers at once.
"""

import math
from dataclasses import dataclass
from typing import Literal

from logtrain.core.kinds import Config

LR_OF_ADAPTERS = 2e-4  # of LoRA: some ten times that of all parameters (Hu et al. 2021, arXiv:2106.09685, appendix D)
LR_OF_PAIRS = 5e-6  # of adapters in DPO; of all parameters a tenth (Lambert et al. 2024, arXiv:2411.15124)


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Config, prefix="optim."):
    """AdamW and its learning rate."""

    lr: float = 1e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape of the learning rate's course after the warm-up. wsd: it stays at the peak, then falls over decay_ratio."""
    decay_ratio: float = 0.1
    """Share of all steps, the last ones, over which wsd falls to min_lr_ratio of the peak. 0: it stays there."""
    warmup_ratio: float = 0.1
    """Share of all steps over which the learning rate rises linearly to its peak."""
    warmup_steps: int = 0
    """Steps over which it rises, instead of a share. 0: warmup_ratio counts."""
    min_lr_ratio: float = 0.0
    """Learning rate of the last step as a share of the peak (not of constant)."""
    beta1: float = 0.9
    """Decay of the mean of the gradients from step to step."""
    beta2: float = 0.999
    """Decay of the mean of the squared gradients from step to step."""
    eps: float = 1e-8
    """Number that is added to the root of the mean square, by which the mean gradient is divided."""
    weight_decay: float = 0.01
    """Decoupled weight decay of the matrices; the scales of norms do not decay."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("warmup_ratio", "decay_ratio", "min_lr_ratio", "beta1", "beta2"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} = {getattr(self, name)} is outside [0, 1]")
        if self.schedule == "wsd" and not self.warmup_steps and self.warmup_ratio + self.decay_ratio > 1:
            raise ValueError(
                f"optim.warmup_ratio = {self.warmup_ratio} and optim.decay_ratio = {self.decay_ratio} are more than "
                f"the whole run; lower one"
            )
        if self.warmup_steps < 0:
            raise ValueError(f"optim.warmup_steps = {self.warmup_steps} must not be negative")
        for name in ("lr", "weight_decay", "eps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optim.{name} = {getattr(self, name)} must be a finite number >= 0")

    def lr_at(self, step: int, total_steps: int) -> float:
        """Learning rate of the update `step` (0-based) out of `total_steps`.

        The warm-up takes warmup_steps, or ceil(ratio * total) steps, and its first already moves: (step + 1) / warm-up.
        The first step after it has the peak, unless it is the last, which has `min_lr_ratio` of it (Loshchilov & Hutter
        2017, arXiv:1608.03983, one cycle). Of wsd the last ceil(decay_ratio * total) steps fall, by 1 - sqrt of the
        share of them that is over (Hägele et al. 2024, arXiv:2405.18392); the step before them has the peak.
        """
        warmup = self.warmup_steps or math.ceil(self.warmup_ratio * total_steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        last = total_steps - 1
        progress = 1.0 if step == last > 0 else (step - warmup) / max(1, last - warmup)
        decay = min(math.ceil(self.decay_ratio * total_steps), total_steps - warmup) if total_steps > 1 else 0
        share = {
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "linear": 1 - progress,
            "constant": 1.0,
            "wsd": 1 - math.sqrt(max(0, step - last + decay) / max(1, decay)),
        }[self.schedule]
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * share)
