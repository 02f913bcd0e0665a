"""A micro-batch while its rows are laid out: flat tokens, labels, positions, and where sequences begin.

Shapes in names: T = rows of the micro-batch * seq_len tokens, one row behind the other.
"""

from collections.abc import Sequence

import numpy as np
import torch

from logtrain.core.batch import IGNORE, Batch
from logtrain.data.shards import CONTEXT


class Layout:
    """The tokens of a micro-batch while its rows are laid out, one behind the other. What nothing is put into is
    padding without targets.
    """

    def __init__(self, num_tokens: int, pad_id: int):
        self.tokens_T = np.full(num_tokens, pad_id, dtype=np.int64)
        self.labels_T = np.full(num_tokens, IGNORE, dtype=np.int64)
        self.positions_T = np.empty(num_tokens, dtype=np.int32)
        self.starts: list[int] = []
        self.lengths: list[int] = []

    def add_sequence(self, start: int, length: int) -> None:
        """Let the tokens from `start` on attend to each other, and to no others."""
        self.positions_T[start : start + length] = np.arange(length, dtype=np.int32)
        self.starts.append(start)
        self.lengths.append(length)

    def add_piece(self, start: int, stored: np.ndarray) -> None:
        """Put tokens of a document, as they are stored, and their labels from `start` on."""
        end = start + len(stored)
        self.tokens_T[start:end] = stored & (CONTEXT - 1)
        self.labels_T[start : end - 1] = np.where(stored[1:] & CONTEXT, IGNORE, self.tokens_T[start + 1 : end])

    def batch(self, seeds_T: np.ndarray) -> Batch:
        """`seeds_T`: int64. Sequences are as many as there are: for one more, though empty, FlashAttention-2 would
        launch as many blocks as the longest takes.
        """
        cu_seqlens = np.array([*self.starts, len(self.tokens_T)], dtype=np.int32)
        return Batch(
            torch.from_numpy(self.tokens_T),
            torch.from_numpy(self.labels_T),
            torch.from_numpy(self.positions_T),
            torch.from_numpy(cu_seqlens),
            max(self.lengths),
            torch.from_numpy(seeds_T),
        )


def token_seeds(seed: int, epoch: int, rows: Sequence[int], seq_len: int) -> np.ndarray:
    """int64 [T]: the tokens' numbers in the run by splitmix64 (Steele et al. 2014), which maps one to one."""
    row_R = np.array(rows, dtype=np.uint64) + np.uint64(epoch << 32)
    number_T = (row_R[:, None] * np.uint64(seq_len) + np.arange(seq_len, dtype=np.uint64)).ravel()
    start = mixed(np.array([seed % 2**64], dtype=np.uint64))
    return mixed(start + number_T * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


def mixed(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64, of uint64 in any shape."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
