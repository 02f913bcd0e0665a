"""Packs documents into rows of seq_len tokens: cuts long ones into pieces, and lets chance decide which share a row.

    pieces(lengths_D, seq_len)               which span of which document each piece is, the same in every epoch
    pack(length_P, seq_len, seed, epoch)     which pieces share a row, and the order of the rows

Both are pure functions, so every rank computes the same rows and nothing about them is stored. pack
needs some 20 bytes a piece while it works, what it is given included: it computes what it can in blocks of its arrays.

Why not best-fit-decreasing, which leaves a little less of a row empty: it puts pieces of equal length together, so that
a row is a sample of one class of documents, and the gradient of a step has up to three times the variance
(benchmarks/gradient_noise.py measures it).

Letters in names: D documents, P pieces, R rows (R1 = R + 1 boundaries). Lengths and numbers are int32 (those of
documents int64 where they need it), boundaries int64.
"""

import logging
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

try:
    from logtrain import _pack  # compiled from csrc/

    if not hasattr(_pack, "look_ahead_fit"):
        raise ImportError(f"{_pack.__file__} is of another version")
except ImportError as error:
    logging.getLogger(__name__).warning(
        "the C++ packer is not built (%s): packing in Python, about 50 times slower; "
        "to build it, install a C++17 compiler and then this package again",
        error,
    )
    _pack = None

USES_CPP = _pack is not None
LOW_32 = np.uint64(2**32 - 1)
BLOCK = 1 << 16  # of an array: half a megabyte
LEAST_AHEAD, MOST_AHEAD = 64, 1024
"""How many pieces are looked at, at least and at most, to start and to fill up a row; csrc/pack.cpp has the same."""


class Pieces(NamedTuple):
    """Piece p is tokens [start_P[p], start_P[p] + length_P[p]) of document document_P[p]."""

    document_P: np.ndarray
    """int32, ascending"""
    start_P: np.ndarray
    """int32"""
    length_P: np.ndarray
    """int32, 1..seq_len"""


class PackedRows(NamedTuple):
    """Row r holds pieces piece_P[row_start_R1[r] : row_start_R1[r + 1]], in that order."""

    piece_P: np.ndarray
    """int32, a permutation of the pieces"""
    row_start_R1: np.ndarray
    """int64, from 0 to P"""

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.row_start_R1) - 1

    def pieces_of(self, row: int) -> np.ndarray:
        """The pieces of a row, int32, in order."""
        return self.piece_P[self.row_start_R1[row] : self.row_start_R1[row + 1]]


def pieces(lengths_D: np.ndarray, seq_len: int, first: int = 0) -> Pieces:
    """Cuts every document longer than seq_len so that neighbouring pieces share one token. `first`: the number of the
    first document.

    A piece's first token is never a target (no token of its document stands before it in the row). The shared token is
    therefore a target in the earlier piece and context in the later: every token but a document's first is a target
    exactly once, and no piece is a lone token unless its document is. Raises ValueError for seq_len < 2 and for an
    empty document.
    """
    if seq_len < 2:
        raise ValueError(f"seq_len is {seq_len}: a row needs at least 2 tokens, one to read and one to predict")
    lengths_D = np.asarray(lengths_D)
    lengths_D = lengths_D.astype(np.int64 if lengths_D.itemsize > 4 else np.int32, casting="same_kind", copy=False)
    if len(lengths_D) and lengths_D.min() < 1:
        document = int(np.argmax(lengths_D < 1))
        raise ValueError(
            f"document {first + document} has {lengths_D[document]} tokens: there is nothing to pack in it"
        )
    stride, num_pieces_D = seq_len - 1, count_pieces(lengths_D, seq_len)
    document_P = numbers(num_pieces_D)
    # Without dtype NumPy would sum int32 as int64, ten times as long, with Python's lock all the time: 0.5 s of 22M.
    first_piece_D = np.cumsum(num_pieces_D, dtype=np.int32) - num_pieces_D
    start_P = np.arange(len(document_P), dtype=np.int32)
    start_P -= first_piece_D[document_P]
    start_P *= stride
    length_P = np.minimum(seq_len, lengths_D[document_P] - start_P).astype(np.int32)
    document_P += first
    return Pieces(document_P, start_P, length_P)


def count_pieces(lengths_D: np.ndarray, seq_len: int) -> np.ndarray:
    """int32 [D]: into how many pieces `pieces` cuts each document."""
    of_targets_D = -(-(lengths_D - 1) // (seq_len - 1))  # ceil((L - 1) / stride): targets over targets a piece
    return np.maximum(1, of_targets_D).astype(np.int32, copy=False)


def numbers(count_N: np.ndarray) -> np.ndarray:
    """int32: 0 count_N[0] times, 1 count_N[1] times, and so on; every count is at least 1.

    Not by np.repeat, which holds Python's lock, 10 ms a million, for which no other thread of the process gets on.
    """
    ends_N = np.cumsum(count_N, dtype=np.int32)
    is_next = np.zeros(ends_N[-1] if len(ends_N) else 0, np.int32)
    is_next[ends_N[:-1]] = 1
    return np.cumsum(is_next, dtype=np.int32, out=is_next)


def blocks(size: int, step: int = BLOCK) -> Iterator[slice]:
    """The parts of an array in which something is computed of it that would need memory for the whole of it."""
    return (slice(first, min(first + step, size)) for first in range(0, size, step))


def random_order(bits: np.random.PCG64, size: int) -> np.ndarray:
    """int32 [size]: 0 to size - 1, by 32 random bits each. NumPy promises that a bit generator's raw stream never
    changes, but not what Generator.permutation makes of it.
    """
    key = bits.random_raw(size)
    key &= ~LOW_32
    sort_with_places(key)
    return places(key, 32)


def sort_with_places(key_N: np.ndarray) -> None:
    """Sort keys (uint64) in place after the place of each was put into its low bits, which are 0 as far as it needs:
    that takes a third of the time of argsort, and no memory.
    """
    for block in blocks(len(key_N)):
        key_N[block] |= np.arange(block.start, block.stop, dtype=np.uint64)
    key_N.sort()


def places(key_N: np.ndarray, place_bits: int) -> np.ndarray:
    """int32 [N]: the places in the low bits of keys, of which nothing else is left."""
    key_N &= np.uint64((1 << place_bits) - 1)
    return key_N.astype(np.int32)


def pack(length_P: np.ndarray, seq_len: int, seed: int, epoch: int) -> PackedRows:
    """Puts every piece into exactly one row of at most seq_len tokens; another epoch gives other rows in another order.

    Chance decides which pieces share a row, the order of the rows, and the order inside a row (as packed, the longest
    would always come first). Raises ValueError for a negative seed or epoch, and where look_ahead_fit does.
    """
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed and epoch must not be negative, they are {seed} and {epoch}")
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    shuffled_P = random_order(bits, len(length_P))
    row_P = look_ahead_fit(length_P[shuffled_P], seq_len)
    num_rows = int(row_P.max(initial=-1)) + 1
    row_order = random_order(bits, num_rows)
    # Sorted by row, and inside a row by fresh random bits: shuffled_P had its part in which pieces came together.
    place_bits = len(row_P).bit_length()
    random_bits = min(32, 64 - place_bits - num_rows.bit_length())
    key_P = bits.random_raw(len(row_P))
    for block in blocks(len(key_P)):
        key_P[block] >>= np.uint64(64 - random_bits)
        key_P[block] |= row_order[row_P[block]].astype(np.uint64) << np.uint64(random_bits)
    del row_P
    key_P <<= np.uint64(place_bits)
    sort_with_places(key_P)
    edge_R1 = np.arange(num_rows + 1, dtype=np.uint64) << np.uint64(random_bits + place_bits)
    row_start_R1 = np.searchsorted(key_P, edge_R1).astype(np.int64, copy=False)
    piece_P = places(key_P, place_bits)
    for block in blocks(len(piece_P)):
        piece_P[block] = shuffled_P[piece_P[block]]
    return PackedRows(piece_P, row_start_R1)


def look_ahead_fit(length_P: np.ndarray, capacity: int) -> np.ndarray:
    """Returns the row of each piece: int32 [P], rows numbered from 0 without gaps. In C++ where the extension is built.

    Raises ValueError for a length outside 1..capacity, and for a capacity outside 1..2**31 - 2.
    """
    if not 1 <= capacity < np.iinfo(np.int32).max:
        raise ValueError(f"the capacity of a row is {capacity} tokens: it must lie in 1..{np.iinfo(np.int32).max - 1}")
    length_P = np.asarray(length_P)
    if len(length_P) and not (length_P.min() >= 1 and length_P.max() <= capacity):
        piece = int(np.argmax((length_P < 1) | (length_P > capacity)))
        raise ValueError(f"piece {piece} has {length_P[piece]} tokens: it must have 1..{capacity} to fit into a row")
    length_P = np.ascontiguousarray(length_P.astype(np.int32, casting="same_kind", copy=False))
    if _pack is None:
        return look_ahead_fit_reference(length_P, capacity)
    row_P = np.empty(len(length_P), np.int32)
    _pack.look_ahead_fit(length_P, capacity, row_P)
    return row_P


def look_ahead_fit_reference(length_P: np.ndarray, capacity: int) -> np.ndarray:
    """What csrc/pack.cpp computes, in Python: equal output, lengths already checked.

    A row takes the longest piece of the window, then pieces in input order as long as they fit, and at the end, again
    and again, the longest of the window that still fits. The window is the first pieces that no row has: half of them
    all, but at least LEAST_AHEAD and at most MOST_AHEAD. Of equally long ones the first is taken.
    """
    window = Window(length_P.tolist(), capacity)
    row_P = np.full(len(length_P), -1, np.int32)
    front = num_rows = 0
    while window.num_left:
        space, length = capacity, window.longest(capacity)
        while length:
            row_P[window.take(length)] = num_rows
            space -= length
            while front < len(row_P) and row_P[front] >= 0:
                front += 1
            following = window.lengths[front] if front < len(row_P) else space + 1
            length = following if following <= space else 0
        while length := window.longest(space):
            row_P[window.take(length)] = num_rows
            space -= length
        num_rows += 1
    return row_P


class Window:
    """The first pieces that have no row, by their length; for look_ahead_fit_reference."""

    def __init__(self, lengths: list[int], capacity: int):
        self.lengths, self.num_left, self.end, self.size = lengths, len(lengths), 0, 0
        self.pieces: list[deque[int]] = [deque() for _ in range(capacity + 1)]  # by length
        self.occupied = 0  # a bitmap in one Python integer: bit `length` is set where pieces[length] is not empty
        self.refill()

    def longest(self, space: int) -> int:
        """The length of the longest piece that fits, 0 if none does."""
        return max(0, (self.occupied & ((2 << space) - 1)).bit_length() - 1)

    def take(self, length: int) -> int:
        """The first piece of a length that is there; it has a row from now on."""
        piece = self.pieces[length].popleft()
        if not self.pieces[length]:
            self.occupied ^= 1 << length
        self.size -= 1
        self.num_left -= 1
        self.refill()
        return piece

    def refill(self) -> None:
        """Look as far ahead as is due."""
        size = min(MOST_AHEAD, max(LEAST_AHEAD, self.num_left // 2))
        while self.end < len(self.lengths) and self.size < size:
            length = self.lengths[self.end]
            self.pieces[length].append(self.end)
            self.occupied |= 1 << length
            self.end, self.size = self.end + 1, self.size + 1
