"""Random documents in memory, in place of prepared data, for what is measured without any."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from logtrain.data.shards import Split

NLPLOG_TOKENS, NLPLOG_SIGMA = 444.0, 0.6  # NLPLog's mean length; the sigma is an assumption (planning/config.py)


def lognormal_lengths(
    number: int, longest: int, mean: float = NLPLOG_TOKENS, sigma: float = NLPLOG_SIGMA
) -> np.ndarray:
    """Tokens of so many documents, from 2 to `longest`, the same at every call: int64. `sigma`: of their logarithms."""
    drawn = np.random.default_rng(0).lognormal(np.log(mean) - sigma**2 / 2, sigma, number)
    return np.clip(drawn.astype(np.int64), 2, longest)


class RandomDocuments(Split):
    """A split of documents of the given lengths, whose tokens depend on (seed, the document's number) alone."""

    def __init__(self, lengths: np.ndarray, vocab_size: int, seed: int = 0):
        """`lengths`: int64, at least 2 each."""
        self.lengths, self.targets = lengths, lengths - 1
        self.vocab_size, self.seed = vocab_size, seed
        self.manifest: Any = {"tokenizer": {"document_end_id": 0}}

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield self.lengths, self.targets

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        random = np.random.default_rng((self.seed, document))
        return random.integers(self.vocab_size, size=int(self.lengths[document]), dtype=np.uint32)[start:stop]
