"""What a user may set of the model. Nothing here imports torch, so that `--help` answers at once."""

from dataclasses import dataclass
from typing import Literal, get_args

AttentionBackend = Literal["torch", "fa3", "flash_attn"]
Recompute = Literal["none", "selective", "full"]
LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters, in the place of training all weights."""

    rank: int = 0
    """Rank of the adapters. 0: none, all weights are trained."""
    alpha: float = 32.0
    """What an adapter adds counts alpha / rank times."""
    dropout: float = 0.0
    """Share of an adapter's inputs that are dropped in training, to the nearest of 65,536 steps."""
    targets: tuple[LoraTarget, ...] = get_args(LoraTarget)
    """Layers with adapters, by their Hugging Face names."""

    def __post_init__(self):
        if self.rank < 0 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora: rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}: expected rank >= 0, alpha > 0, "
                f"0 <= dropout < 1"
            )
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"lora.targets = {self.targets}: expected at least one layer, each once")

    @property
    def scale(self) -> float:
        """How many times what an adapter adds counts."""
        return self.alpha / self.rank
