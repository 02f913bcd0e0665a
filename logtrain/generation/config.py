"""The settings of generation. Nothing here imports torch, so that `--help` answers at once."""

from dataclasses import dataclass

from logtrain.core.kinds import Config

LEAST_TEMPERATURE = 1e-6  # a logit divided by it stays finite in fp32
DRAWN_BY = (
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
)  # settings of draws that a generation_config.json may have
LLAMA_SAMPLING = {"temperature": 0.6, "top_p": 0.9}  # generation_config.json of Llama-3.1-8B-Instruct


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How the next token is drawn from the logits. Raises ValueError for values outside their range."""

    temperature: float = 0.0
    """Divisor of the logits before a token is drawn. 0: always the likeliest token (greedy)."""
    top_k: int = 0
    """Each token is drawn among so many of the likeliest. 0: among all."""
    top_p: float = 1.0
    """Tokens are drawn among the likeliest whose probabilities have this sum together (nucleus). 1: among all."""
    repetition_penalty: float = 1.0
    """Penalty of tokens that prompt or answer has already: positive logits are divided by it, negative ones multiplied.
    1: none."""
    presence_penalty: float = 0.0
    """What is taken from the logit of every token that the answer has already."""
    frequency_penalty: float = 0.0
    """What is taken from the logit of a token for each time that the answer has it already."""
    min_p: float = 0.0
    """Tokens less likely than this part of the likeliest one's probability are not drawn."""
    seed: int = 1309
    """Seed of the draws; the same requests with the same seed get the same answers."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("temperature", "top_k", "seed"):
            if not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} = {getattr(self, name)} must be a finite number >= 0")
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise ValueError(f"temperature = {self.temperature} is too small to divide by; 0 takes the likeliest token")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} is outside (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p = {self.min_p} is outside [0, 1]")
        for name in ("presence_penalty", "frequency_penalty"):
            if not abs(getattr(self, name)) <= 100:
                raise ValueError(f"{name} = {getattr(self, name)} is outside [-100, 100]")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty = {self.repetition_penalty} must be a finite number above 0")
