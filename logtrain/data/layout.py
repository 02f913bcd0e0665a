"""A micro-batch while its rows are laid out: flat tokens, labels, positions, and where sequences begin.

Shapes in names: T = rows of the micro-batch * seq_len tokens, one row behind the other; K outcomes of a teacher's
distribution.
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

    def __init__(self, num_tokens: int, pad_id: int, teacher_top_k: int = 0):
        """`teacher_top_k`: K, 0 without a teacher."""
        self.tokens_T = np.full(num_tokens, pad_id, dtype=np.int64)
        self.labels_T = np.full(num_tokens, IGNORE, dtype=np.int64)
        self.positions_T = np.empty(num_tokens, dtype=np.int32)
        self.teacher_TK = np.zeros((num_tokens, teacher_top_k), dtype=np.int32)
        self.teacher_log_TK = np.full((num_tokens, teacher_top_k), -np.inf, dtype=np.float16)
        self.starts: list[int] = []
        self.lengths: list[int] = []

    def add_sequence(self, start: int, length: int) -> None:
        """Let the tokens from `start` on attend to each other, and to no others."""
        self.positions_T[start : start + length] = np.arange(length, dtype=np.int32)
        self.starts.append(start)
        self.lengths.append(length)

    def add_piece(self, start: int, stored: np.ndarray, teacher: np.ndarray | None = None) -> None:
        """Put tokens of a document, as they are stored, and their labels from `start` on. `teacher`: the teacher's
        records of the same tokens, which go where the labels are.
        """
        end = start + len(stored)
        self.tokens_T[start:end] = stored & (CONTEXT - 1)
        self.labels_T[start : end - 1] = np.where(stored[1:] & CONTEXT, IGNORE, self.tokens_T[start + 1 : end])
        if teacher is not None:
            self.teacher_TK[start : end - 1] = teacher["ids"][1:]
            self.teacher_log_TK[start : end - 1] = teacher["log_probabilities"][1:]

    def batch(self, seeds_T: np.ndarray) -> Batch:
        """`seeds_T`: int64. Sequences are as many as there are: for one more, though empty, FlashAttention-2 would
        launch as many blocks as the longest takes.
        """
        cu_seqlens = np.array([*self.starts, len(self.tokens_T)], dtype=np.int32)
        has_teacher = self.teacher_TK.shape[1] > 0
        return Batch(
            torch.from_numpy(self.tokens_T),
            torch.from_numpy(self.labels_T),
            torch.from_numpy(self.positions_T),
            torch.from_numpy(cu_seqlens),
            max(self.lengths),
            torch.from_numpy(seeds_T),
            teacher_TK=torch.from_numpy(self.teacher_TK) if has_teacher else None,
            teacher_log_TK=torch.from_numpy(self.teacher_log_TK) if has_teacher else None,
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
