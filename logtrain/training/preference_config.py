"""The settings of training on pairs of answers. Nothing here imports torch, so that `--help` answers at once."""

import math
from dataclasses import dataclass

from logtrain.core.kinds import Config


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(Config, prefix="dpo."):
    """The loss of logtrain dpo; other runs have another."""

    beta: float = 0.1
    """How strongly the model is held to the reference: log-probability ratios are multiplied by it."""
    label_smoothing: float = 0.0
    """Share of the pairs of which the rejected answer is taken to be the better one (conservative DPO)."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.beta < math.inf:
            raise ValueError(f"dpo.beta = {self.beta} must be a finite number above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"dpo.label_smoothing = {self.label_smoothing} must be at least 0 and below 0.5")
