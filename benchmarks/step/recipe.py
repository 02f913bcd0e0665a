"""What both libraries train, how, and what a worker measures: the model, the rows, the settings."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np

from logtrain.data.shards import Split

Attention = Literal["document", "row"]
ATTENTIONS: tuple[Attention, ...] = ("document", "row")
SEQ_LEN, ROWS, STEPS, WARM_UP = 2048, 2, 20, 4
LR = 1e-3
CONFIG: dict[str, Any] = {  # config.json
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": SEQ_LEN,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
}


def attention_of(word: str) -> Attention:
    """The attention that a word of the command line names."""
    return next(attention for attention in ATTENTIONS if attention == word)


class Measurement(TypedDict):
    """What a worker prints as JSON."""

    tokens_per_second: float
    memory_gib: float
    """the most that the process held, beyond what it held before the model"""
    losses: list[float]
    """of every step, per target, in nats"""


class Documents(Split):
    """A split in memory of random documents, log-normal with a mean of 111 tokens. A row holds about 18 of them, as
    many as a row of 8,192 holds of NLPLog's, which average 444.
    """

    def __init__(self):
        random = np.random.default_rng(0)
        self.lengths = np.clip(random.lognormal(4.53, 0.6, ROWS * STEPS * 19).astype(np.int64), 4, SEQ_LEN)
        self.targets = self.lengths - 1
        starts = np.cumsum(self.lengths)
        self.documents = np.split((random.zipf(1.3, starts[-1]) % CONFIG["vocab_size"]).astype(np.uint32), starts[:-1])

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        return self.documents[document][start:stop]


@dataclass
class Clock:
    """When each step ended. The steps before WARM_UP do not count."""

    ends: list[float] = field(default_factory=list)

    def step_ended(self) -> None:
        self.ends.append(time.perf_counter())

    def tokens_per_second(self) -> float:
        """The speed over the steps that count."""
        return (len(self.ends) - WARM_UP) * ROWS * SEQ_LEN / (self.ends[-1] - self.ends[WARM_UP - 1])
