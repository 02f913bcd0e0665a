"""What both libraries train, how, and what a worker measures: the model, the rows, the settings."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, TypedDict

import numpy as np
import orjson

from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader
from logtrain.data.shards import Split

Attention = Literal["document", "row"]
ATTENTIONS: tuple[Attention, ...] = ("document", "row")
WARM_UP = 2  # steps that do not count: memory is touched for the first time, the optimizer's state is made
MEAN_LENGTH = 111  # tokens of a document: as a row of 2,048 then has as many as one of 8,192 has of NLPLog's 444
TINY: dict[str, Any] = {  # config.json of the model that is trained where none is named
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One measurement's settings, as a worker reads them from its command line."""

    model: str
    """Folder of the model, in the Hugging Face layout."""
    vocab_size: int
    """Ids that documents are made of."""
    attention: Attention
    """Whether a token sees its document, or its row."""
    seq_len: int
    """Tokens in a row."""
    rows: int
    """Rows in a step, which is one micro-batch."""
    steps: int
    """Steps to train, WARM_UP among them."""
    threads: int
    """Threads that compute."""
    lr: float
    """Constant learning rate."""

    def to_json(self) -> str:
        """The recipe as an argument of a command line."""
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The recipe that `to_json` wrote."""
        return cls(**orjson.loads(text))

    def loader(self, rows_per_batch: int) -> Loader:
        """A loader of the recipe's rows, so many in a micro-batch."""
        config = LoaderConfig(
            seq_len=self.seq_len, rows_per_step=self.rows, rows_per_batch=rows_per_batch, attention=self.attention
        )
        return Loader(Documents(self), config, seed=0, pad_id=0)


class Measurement(TypedDict):
    """What a worker prints as JSON."""

    tokens_per_second: float
    cpu_seconds: float
    """of a step, over all threads, in user and system mode: the median"""
    memory_gib: float
    """the most that the process held, beyond what it held before the model"""
    losses: list[float]
    """of every step, per target, in nats"""


class Documents(Split):
    """A split in memory of random documents, log-normal with a mean of MEAN_LENGTH tokens."""

    def __init__(self, recipe: Recipe):
        random = np.random.default_rng(0)
        tokens = recipe.rows * recipe.seq_len * recipe.steps
        lengths = random.lognormal(np.log(MEAN_LENGTH) - 0.18, 0.6, 2 * tokens // MEAN_LENGTH + 1).astype(np.int64)
        self.lengths = np.clip(lengths, 4, recipe.seq_len)
        self.targets = self.lengths - 1
        starts = np.cumsum(self.lengths)
        self.documents = np.split((random.zipf(1.3, starts[-1]) % recipe.vocab_size).astype(np.uint32), starts[:-1])

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield self.lengths, self.targets

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        return self.documents[document][start:stop]


@dataclass
class Clock:
    """The times at which steps ended, by the wall and by the processor."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def step_ended(self) -> None:
        """Note the end of a step."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def measured(self, recipe: Recipe, memory_gib: float, losses: list[float]) -> Measurement:
        """What the steps after WARM_UP took."""
        seconds = self.wall[-1] - self.wall[WARM_UP - 1]
        tokens = (recipe.steps - WARM_UP) * recipe.rows * recipe.seq_len
        return {
            "tokens_per_second": tokens / seconds,
            "cpu_seconds": float(np.median(np.diff(self.cpu[WARM_UP - 1 :]))),
            "memory_gib": memory_gib,
            "losses": losses,
        }
