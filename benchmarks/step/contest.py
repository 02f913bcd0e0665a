"""What both contestants train: the model, the rows, the settings."""

import time
from dataclasses import dataclass, field

import numpy as np

SEQ_LEN, ROWS, STEPS, WARM_UP = 2048, 2, 20, 4
LR = 1e-3
CONFIG = {
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


class Documents:
    """Random documents, log-normal with a mean of 111 tokens: a split in memory. A row holds about 18 of them, as many
    as a row of 8,192 holds of NLPLog's, which average 444.
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
        return (len(self.ends) - WARM_UP) * ROWS * SEQ_LEN / (self.ends[-1] - self.ends[WARM_UP - 1])
