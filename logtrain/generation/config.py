"""What a user may set of generation. Nothing here imports torch, so that `--help` answers at once."""

from dataclasses import dataclass

LEAST_TEMPERATURE = 1e-6  # logits of 1e8 are not infinite yet
DRAWN_BY = ("temperature", "top_k", "top_p", "repetition_penalty")  # what a generation_config.json may say of draws
LLAMA_SAMPLING = {"temperature": 0.6, "top_p": 0.9}  # generation_config.json of Llama-3.1-8B-Instruct


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is drawn. Raises ValueError for values that no draw can have."""

    temperature: float = 0.0
    """Logits are divided by it before a token is drawn. 0: no draw, always the likeliest token (greedy)."""
    top_k: int = 0
    """A token is drawn among so many of the likeliest. 0: among all."""
    top_p: float = 1.0
    """A token is drawn among the likeliest that have this much probability together."""
    repetition_penalty: float = 1.0
    """Logits of tokens that are there already, the prompt's too, are divided by it, or multiplied if they are below
    0."""
    seed: int = 1309
    """Seed of the draws: the same requests with the same seed get the same answers."""

    def __post_init__(self):
        for name in ("temperature", "top_k", "seed"):
            if not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} = {getattr(self, name)} must be a finite number >= 0")
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise ValueError(f"temperature = {self.temperature} is too small to divide by; 0 takes the likeliest token")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} is outside (0, 1]")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty = {self.repetition_penalty} must be a finite number above 0")
