"""The settings of generation. Nothing here imports torch, so that `--help` answers at once."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from logtrain.core.kinds import Config
from logtrain.core.location import FILE, MODEL, OUTPUT
from logtrain.core.units import count_of
from logtrain.data.config import MOST_TOP_K
from logtrain.text.config import DATE, check_date

LEAST_TEMPERATURE = 1e-6  # a logit divided by it stays finite in fp32
DRAWN_BY = (
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
)  # settings of draws that a generation_config.json may have, beside min_p
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


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(Config):
    """Let a model write its own old data before it is trained on new: prepared data that a run mixes in."""

    model: Annotated[str, MODEL]
    """The model that will be trained: a Llama folder, an export or a PEFT adapter."""
    output: Annotated[str, OUTPUT]
    """Folder to write. It appears once everything is done; until then what is written lies beside it, in
    OUTPUT.samples, from which the same command goes on after a kill."""
    tokens: str = "5M"
    """Tokens to write, as 5M, 300k or 5_000_000."""
    kind: Literal["auto", "documents", "chats"] = "auto"
    """documents: what the model writes after a document's first token. chats: a question that it writes after the
    header of a user's turn, and its answer, which alone is trained on. auto: chats where it has a chat template."""
    seq_len: int = 8192
    """Tokens in a packed row of the training to come; no sample is longer."""
    max_tokens: int = 1024
    """The most tokens of a document, of a question and of an answer; a longer one is cut, and no end learned there."""
    min_tokens: int = 8
    """A document or an answer of fewer tokens is left out."""
    max_repeated: float = 0.3
    """A sample is left out where more than this share of its runs of 8 tokens stood in it before. 1: none is."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=1.0))
    """How tokens are drawn; temperature 1 and no cuts are the model's own distribution."""
    teacher_top_k: int = 0
    """Stores beside each token the so many that the model found the most likely in its place, with their
    log-probabilities at temperature 1: 6 bytes each, for training with trainer.replay_kl. 0: none."""
    template: Annotated[str, FILE] = ""
    """A jinja file to write chats with instead of the model's own chat template."""
    date: str = DATE
    """The date that is given to a chat template that asks for today's."""
    memory: float = 0.0
    """GiB for the cache of keys and values. 0: four fifths of what is free on a GPU, 2 GiB on a CPU."""
    max_sequences: int = 64
    """The most samples that are written at once on a device, as far as the memory allows."""

    def __post_init__(self):
        super().__post_init__()
        count_of("tokens", self.tokens)
        least = {"seq_len": 32, "max_tokens": 1, "min_tokens": 1, "max_sequences": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {value}")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens = {self.min_tokens} is more than max_tokens = {self.max_tokens}")
        if not 0 < self.max_repeated <= 1:
            raise ValueError(f"max_repeated = {self.max_repeated} is outside (0, 1]")
        if not self.sampling.temperature:
            raise ValueError("sampling.temperature = 0.0: every sample would be the same; give a temperature above 0")
        for name in ("top_k", "min_p"):
            if getattr(self.sampling, name) == 1:
                raise ValueError(f"sampling.{name} = 1: every sample would be the same, of the likeliest tokens alone")
        if self.teacher_top_k and not 2 <= self.teacher_top_k <= MOST_TOP_K:  # one tells nothing that the text does not
            raise ValueError(f"teacher_top_k = {self.teacher_top_k} must be 0, or from 2 to {MOST_TOP_K}")
        if not 0 <= self.memory < float("inf"):
            raise ValueError(f"memory = {self.memory} must be a finite number >= 0")
        check_date(self.date)

    @property
    def num_tokens(self) -> int:
        """Tokens to write."""
        return count_of("tokens", self.tokens)
