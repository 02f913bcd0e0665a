"""Packed rows of one split, step by step, as a pure function of (seed, epoch, step).

A step takes the next `rows_per_step` rows of the epoch's shuffled order, over all ranks: rank r of W gets rows r,
r + W, ... in groups of `rows_per_batch`, one group a micro-batch. The rows of a step do not depend on W or on the
grouping, so a run resumes on another number of GPUs from one integer. The last step of an epoch is filled up with
empty rows: no document is dropped, none is seen twice.

Shapes in names: T = rows_per_batch * seq_len tokens, D documents, P pieces, R rows.
"""

import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from logtrain.core.batch import IGNORE, Batch
from logtrain.data.config import LoaderConfig
from logtrain.data.pack import PackedRows, pack, pieces
from logtrain.data.shards import CONTEXT, Split


@dataclass(frozen=True)
class Step:
    """What one rank needs for an optimizer step; the counts are over all ranks, known without asking them."""

    batches: list[Batch]
    """this rank's micro-batches, in order"""
    tokens: int
    targets: int
    attention_pairs: int
    """(query, key) pairs within the causal mask, for FLOP counts"""


@dataclass(frozen=True)
class Epoch:
    """An epoch's packing, and what each of its rows holds."""

    number: int
    rows: PackedRows
    tokens_R: np.ndarray
    """int64"""
    targets_R: np.ndarray
    """int64"""
    pairs_R: np.ndarray
    """int64: (query, key) pairs within the causal mask"""
    max_pieces: int
    """the most pieces that a row has"""


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

    def batch(self, max_sequences: int, seeds_T: np.ndarray) -> Batch:
        """`max_sequences`: the most sequences that any batch has. `seeds_T`: int64."""
        cu_seqlens = np.full(max_sequences + 1, len(self.tokens_T), dtype=np.int32)
        cu_seqlens[: len(self.starts)] = self.starts
        return Batch(
            torch.from_numpy(self.tokens_T),
            torch.from_numpy(self.labels_T),
            torch.from_numpy(self.positions_T),
            torch.from_numpy(cu_seqlens),
            max(self.lengths),
            torch.from_numpy(seeds_T),
        )


def token_seeds(seed: int, epoch: int, rows: range, seq_len: int) -> np.ndarray:
    """int64 [T]: the tokens' numbers in the run by splitmix64 (Steele et al. 2014), which maps one to one."""
    row_R = np.array(rows, dtype=np.uint64) + np.uint64(epoch << 32)
    number_T = (row_R[:, None] * np.uint64(seq_len) + np.arange(seq_len, dtype=np.uint64)).ravel()
    start = mixed(np.array([seed % 2**64], dtype=np.uint64))
    return mixed(start + number_T * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


def mixed(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64, of uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Loader:
    """Iterates over `Step`s from `self.step` on, without end; `steps_per_epoch` of them are an epoch.

    split: what it reads. num_rows: packed rows of an epoch. accumulation: micro-batches of a step on each rank.
    """

    def __init__(
        self,
        split: Split,
        config: LoaderConfig,
        *,
        seed: int,
        pad_id: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ):
        """`pad_id`: the token in the room that is left. `pin_memory`: let a GPU copy batches by itself. Raises
        ValueError where the ranks cannot share the rows of a step evenly.
        """
        self.split, self.config, self.seed, self.pad_id = split, config, seed, pad_id
        self.rank, self.world_size, self.pin_memory = rank, world_size, pin_memory
        self.accumulation = config.accumulation(world_size)
        self.pieces = pieces(split.lengths, config.seq_len)
        self.piece_targets_P = self.count_targets()
        self.step = 0
        self.epoch = lru_cache(maxsize=2)(self.pack_epoch)
        self.num_rows = len(self.epoch(0).targets_R)
        self.steps_per_epoch = -(-self.num_rows // config.rows_per_step)

    def count_targets(self) -> np.ndarray:
        """Targets of each piece: all its tokens but the first, less those marked as context."""
        document_P, start_P, length_P = self.pieces.document_P, self.pieces.start_P, self.pieces.length_P
        targets_P = self.split.targets[document_P].astype(np.int64)
        all_targets_D = self.split.targets == self.split.lengths - 1
        whole_P = length_P == self.split.lengths[document_P]
        plain_P = all_targets_D[document_P] & ~whole_P
        targets_P[plain_P] = length_P[plain_P] - 1
        for i in np.flatnonzero(~whole_P & ~plain_P):
            targets_P[i] = self.split.targets_between(
                int(document_P[i]), int(start_P[i]) + 1, int(start_P[i] + length_P[i])
            )
        return targets_P

    def pack_epoch(self, epoch: int) -> Epoch:
        """The packing of epoch `epoch` (0-based), and the counts of its rows."""
        length_P = self.pieces.length_P.astype(np.int64)  # squares of 46,341 and more overflow int32
        rows = pack(length_P, self.config.seq_len, self.seed, epoch)

        def per_row(values_P: np.ndarray) -> np.ndarray:
            return np.add.reduceat(values_P[rows.piece_P], rows.row_start_R1[:-1])

        tokens_R = per_row(length_P)
        if self.config.attention == "document":
            pairs_R = per_row(length_P * (length_P + 1) // 2)
        else:
            pairs_R = tokens_R * (tokens_R + 1) // 2
        max_pieces = int(np.diff(rows.row_start_R1).max())
        return Epoch(epoch, rows, tokens_R, per_row(self.piece_targets_P), pairs_R, max_pieces)

    def at(self, step: int) -> Step:
        """Step `step` (0-based, counted over all epochs): the same for the same (seed, step), whatever came before."""
        number, in_epoch = divmod(step, self.steps_per_epoch)
        epoch, size = self.epoch(number), self.config.rows_per_step
        window = slice(in_epoch * size, (in_epoch + 1) * size)
        mine = range(in_epoch * size + self.rank, (in_epoch + 1) * size, self.world_size)
        group = self.config.rows_per_batch
        batches = [self.batch(epoch, mine[i : i + group]) for i in range(0, len(mine), group)]
        return Step(
            batches,
            tokens=int(epoch.tokens_R[window].sum()),
            targets=int(epoch.targets_R[window].sum()),
            attention_pairs=int(epoch.pairs_R[window].sum()),
        )

    def batch(self, epoch: Epoch, rows: range) -> Batch:
        """Rows of an epoch as one micro-batch; a row past the epoch's end is empty."""
        seq_len = self.config.seq_len
        layout = Layout(len(rows) * seq_len, self.pad_id)
        for i, row in enumerate(rows):
            self.lay_out_row(layout, i * seq_len, epoch.rows.pieces_of(row).tolist() if row < self.num_rows else [])
        by_document = self.config.attention == "document"
        max_sequences = len(rows) * (epoch.max_pieces + 1) if by_document else len(rows)
        batch = layout.batch(max_sequences, token_seeds(self.seed, epoch.number, rows, seq_len))
        return batch.pin() if self.pin_memory else batch

    def lay_out_row(self, layout: Layout, start: int, row: list[int]) -> None:
        """Put the pieces of a row into `layout` from `start` on. Room left is a document of its own."""
        end, by_document = start + self.config.seq_len, self.config.attention == "document"
        if not by_document:
            layout.add_sequence(start, end - start)
        for piece in row:
            first = int(self.pieces.start_P[piece])
            length = int(self.pieces.length_P[piece])
            layout.add_piece(start, self.split.read(int(self.pieces.document_P[piece]), first, first + length))
            if by_document:
                layout.add_sequence(start, length)
            start += length
        if by_document and start < end:
            layout.add_sequence(start, end - start)

    def __iter__(self) -> Generator[Step, None, None]:
        """Steps from `self.step` on; a thread lays out the next two while the current one trains."""
        ready: queue.Queue = queue.Queue(maxsize=2)
        stopped = threading.Event()

        def work(step: int) -> None:
            item = None
            while not stopped.is_set():
                try:
                    item = item or self.at(step)
                except Exception as error:  # handed to the consumer, which raises it
                    item = error
                try:
                    ready.put(item, timeout=0.1)
                except queue.Full:
                    continue
                if isinstance(item, Exception):
                    return
                item, step = None, step + 1

        worker = threading.Thread(target=work, args=(self.step,), name="loader", daemon=True)
        worker.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, Exception):
                    raise item
                self.step += 1
                yield item
        finally:
            stopped.set()
            worker.join()
