"""What a user may set of the model. Nothing here imports torch, so that `--help` answers at once."""

from dataclasses import dataclass
from typing import Literal, get_args

from logtrain.core.kinds import Config

AttentionBackend = Literal["auto", "torch", "fa3", "fa4", "flash_attn"]
Recompute = Literal["none", "selective", "full"]
LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, kw_only=True)
class Float8Config(Config, prefix="fp8."):
    """How matrix products are done with precision = "fp8"."""

    recipe: Literal["tensorwise", "rowwise"] = "tensorwise"
    """One scale for each matrix, or one for each token and each output."""
    weight_gradient: Literal["fp8", "bf16"] = "fp8"
    """Precision of the products that give the weights' gradients; bf16: that of the activations."""
    keep: tuple[int, ...] = ()
    """Blocks, counted from 0, whose products stay in the precision of the activations."""

    def __post_init__(self):
        super().__post_init__()
        if min(self.keep, default=0) < 0 or len(set(self.keep)) < len(self.keep):
            raise ValueError(f"fp8.keep = {self.keep}: expected numbers of blocks, from 0 on, each once")


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Config, prefix="lora."):
    """Settings of LoRA: low-rank adapters are trained in the place of all weights."""

    rank: int = 0
    """Rank of the adapters. 0: none, all weights are trained."""
    alpha: float = 32.0
    """The adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Probability with which each input of an adapter is dropped in training, rounded to a multiple of 1 / 65,536."""
    targets: tuple[LoraTarget, ...] = get_args(LoraTarget)
    """The linear layers that get adapters, by their Hugging Face names."""

    def __post_init__(self):
        super().__post_init__()
        if self.rank < 0 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora: rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}: expected rank >= 0, alpha > 0, "
                f"0 <= dropout < 1"
            )
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"lora.targets = {self.targets}: expected at least one layer, each once")

    @property
    def scale(self) -> float:
        """The factor by which an adapter's output is multiplied before it is added: alpha / rank."""
        return self.alpha / self.rank
