"""An epoch of packed rows, in the order in which steps take them, and who computes it when.

Packing a large corpus takes seconds and gigabytes, so one rank of a node does it, in the background while the epoch
before is trained on, and the ranks of the node read its arrays from one memory-mapped folder.

Letters in names: D documents, P pieces, R rows, S slots: the parts into which an epoch's rows are dealt evenly, a step
each, or a row each.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from logtrain.data.config import LoaderConfig
from logtrain.data.deal import deal, row_sums
from logtrain.data.pack import Pieces, blocks, count_pieces, pack, pieces
from logtrain.data.shards import Split

KEPT_BYTES = 1 << 26
"""Epochs that are kept on disk, if they are more than two: where an epoch is a step or less, the rank that packs is
several epochs ahead of a rank that has not opened them yet."""
MOST_KEPT = 64  # epochs, however small they are


@dataclass(frozen=True)
class EpochSize:
    """How much an epoch is."""

    rows: int
    """Packed rows."""
    slots: int
    """Parts into which the rows are dealt."""
    tokens: int
    """Tokens in all rows, without padding."""


class Epoch(NamedTuple):
    """Row r holds pieces row_start_R1[r] to row_start_R1[r + 1], slot s rows slot_start_S1[s] to slot_start_S1[s + 1].
    Piece p is tokens [start_P[p], start_P[p] + length_P[p]) of document document_P[p]: unsigned integers, the narrowest
    that hold them.
    """

    document_P: np.ndarray
    start_P: np.ndarray
    length_P: np.ndarray
    row_start_R1: np.ndarray
    """int64"""
    slot_start_S1: np.ndarray
    """int64"""
    tokens_R: np.ndarray
    """int32"""
    targets_R: np.ndarray
    """int32"""
    pairs_R: np.ndarray
    """int64: (query, key) pairs within the causal mask"""

    def pieces_of(self, row: int) -> Iterator[tuple[int, int, int]]:
        """(document, start, length) of each piece of a row, in order."""
        of_row = slice(*self.row_start_R1[row : row + 2].tolist())
        columns = self.document_P, self.start_P, self.length_P
        return zip(*(column[of_row].tolist() for column in columns), strict=True)

    @property
    def size(self) -> EpochSize:
        """How much it is."""
        return EpochSize(len(self.tokens_R), len(self.slot_start_S1) - 1, int(self.tokens_R.sum(dtype=np.int64)))

    @property
    def nbytes(self) -> int:
        """Size of all arrays."""
        return sum(array.nbytes for array in self)

    def save(self, folder: Path) -> None:
        """Write every array as an .npy file; the folder is there once it is complete."""
        aside = folder.with_name(f"{folder.name}.partial")
        try:
            aside.mkdir(parents=True)
            for name, array in self._asdict().items():
                write_array(aside / f"{name}.npy", array)
            os.rename(aside, folder)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise ValueError(
                f"{folder}: {error.strerror}; an epoch's packing takes {self.nbytes / 1e6:,.1f} MB there, and two are "
                f"kept: make room, or set TMPDIR to another folder"
            ) from error

    @staticmethod
    def open(folder: Path) -> "Epoch":
        """What `save` wrote, memory-mapped."""
        return Epoch(*(np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in Epoch._fields))


class Shared(NamedTuple):
    """Where the ranks of a node share their epochs."""

    folder: Path
    """of this data alone; on a disk of the node, or in its memory"""
    packs: bool
    """whether this rank is the one that computes them"""


class Epochs:
    """Epochs by number, each computed once: in a background thread, and once a node where `shared` is given."""

    def __init__(self, compute: Callable[[int], Epoch], shared: Shared | None = None):
        self.compute, self.shared = compute, shared
        self.futures: dict[int, Future[Epoch]] = {}

    def __getitem__(self, number: int) -> Epoch:
        """Epoch `number` (0-based). Waits until it is computed; raises what computing it raised."""
        self.prepare(number)
        return self.futures[number].result()

    def prepare(self, number: int) -> None:
        """Begin to compute an epoch, unless that was done. Besides it the one nearest to it is kept."""
        if number in self.futures:
            return
        self.futures[number] = Future()
        threading.Thread(target=self.work, args=(number, self.futures[number]), name="epoch", daemon=True).start()
        for old in sorted(self.futures, key=lambda other: abs(other - number))[2:]:
            del self.futures[old]

    def work(self, number: int, future: Future[Epoch]) -> None:
        try:
            future.set_result(self.get(number))
        except BaseException as error:  # raised again where the epoch is asked for
            future.set_exception(error)

    def get(self, number: int) -> Epoch:
        if self.shared is None:
            return self.compute(number)
        folder = self.shared.folder / f"epoch-{number}"
        if self.shared.packs and not folder.exists():
            epoch = self.compute(number)
            before = number - max(2, min(MOST_KEPT, KEPT_BYTES // epoch.nbytes))
            shutil.rmtree(folder.with_name(f"epoch-{before}"), ignore_errors=True)  # what is open stays readable
            epoch.save(folder)
        while not folder.exists():
            time.sleep(0.02)
        return Epoch.open(folder)


def write_array(file: Path, array: np.ndarray) -> None:
    """Write an .npy file of an array of any shape and dtype. np.save does not notice where the last KB find no room."""
    with open(file, "xb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(array.data)


def pack_epoch(
    split: Split, config: LoaderConfig, seed: int, epoch: int, num_slots: int = 0, even: bool = True
) -> Epoch:
    """Epoch `epoch` (0-based) of a split: a pure function. `num_slots`: how many slots its rows are dealt to; 0: as
    many as there are steps of `rows_per_step` rows. `even`: whether pieces change rows so that slots are even.
    """
    length_P = of_pieces(split, config.seq_len, lambda part: part.cut.length_P)
    rows = pack(length_P, config.seq_len, seed, epoch)
    targets_P = of_pieces(split, config.seq_len, lambda part: count_targets(split, part))
    num_slots = num_slots or -(-rows.num_rows // config.rows_per_step)
    most_rows = config.rows_per_step if even else 0
    rows, slot_start_S1 = deal(rows, length_P, targets_P, num_slots, most_rows, config.seq_len, seed, epoch)
    tokens_R, targets_R = row_sums(rows, length_P), row_sums(rows, targets_P)
    del targets_P
    is_apart = config.attention == "document"
    pairs_R = row_sums(rows, length_P, num_pairs) if is_apart else num_pairs(tokens_R)
    length_P = taken(length_P, rows.piece_P)
    start_P = taken(of_pieces(split, config.seq_len, lambda part: part.cut.start_P), rows.piece_P)
    document_P = taken(of_pieces(split, config.seq_len, lambda part: part.cut.document_P), rows.piece_P)
    return Epoch(
        document_P,
        start_P,
        length_P,
        rows.row_start_R1,
        slot_start_S1,
        tokens_R.astype(np.int32),
        targets_R.astype(np.int32),
        pairs_R,
    )


class Part(NamedTuple):
    """Some of a split's documents."""

    first: int
    """the number of the first of them"""
    length_D: np.ndarray
    target_D: np.ndarray
    cut: Pieces


def of_pieces(split: Split, seq_len: int, column: Callable[[Part], np.ndarray]) -> np.ndarray:
    """int32 [P]: a column of the pieces of a split. Each is computed when it is needed, part by part of the split: all
    at once would take the most memory of packing.
    """
    size = sum(int(count_pieces(length_D, seq_len).sum(dtype=np.int64)) for length_D, _ in split.parts())
    found_P, document, end = np.empty(size, np.int32), 0, 0
    for length_D, target_D in split.parts():
        part = Part(document, length_D, target_D, pieces(length_D, seq_len, document))
        document, start, end = document + len(length_D), end, end + len(part.cut.length_P)
        found_P[start:end] = column(part)
    return found_P


def taken(values_P: np.ndarray, piece_P: np.ndarray) -> np.ndarray:
    """The values of some pieces, in the narrowest dtype of unsigned integers."""
    found_P = np.empty(len(piece_P), np.min_scalar_type(int(values_P.max(initial=0))))
    for block in blocks(len(piece_P)):
        found_P[block] = values_P[piece_P[block]]
    return found_P


def num_pairs(length_N: np.ndarray) -> np.ndarray:
    """int64 [N]: (query, key) pairs within the causal mask of so many tokens."""
    length_N = length_N.astype(np.int64)  # squares of 46,341 and more overflow int32
    return length_N * (length_N + 1) // 2


def count_targets(split: Split, part: Part) -> np.ndarray:
    """int32 [P]: targets of each piece: all its tokens but the first, less those marked as context."""
    document_P, start_P, length_P = part.cut
    in_part_P = document_P - part.first
    targets_P = part.target_D[in_part_P].astype(np.int32, copy=False)
    whole_P = length_P == part.length_D[in_part_P]
    plain_P = (part.target_D == part.length_D - 1)[in_part_P] & ~whole_P
    targets_P[plain_P] = length_P[plain_P] - 1
    for i in np.flatnonzero(~whole_P & ~plain_P):
        targets_P[i] = split.targets_between(int(document_P[i]), int(start_P[i]) + 1, int(start_P[i] + length_P[i]))
    return targets_P
