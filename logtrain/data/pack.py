"""Packs documents into rows of seq_len tokens: cut the long ones into pieces, then best-fit-decreasing.

    pieces(lengths_D, seq_len)               which span of which document each piece is, the same in every epoch
    pack(length_P, seq_len, seed, epoch)     which pieces share a row, and the order of the rows

Both are pure functions, so every rank computes the same rows and nothing about them is stored.

Letters in names: D documents, P pieces, R rows (R1 = R + 1 boundaries).
"""

import logging
from typing import NamedTuple

import numpy as np

try:
    from logtrain import _pack  # pyright: ignore[reportAttributeAccessIssue]  # compiled from csrc/
except ImportError as error:
    logging.getLogger(__name__).warning(
        "the C++ packer is not built (%s): packing in Python, about 50 times slower; "
        "to build it, install a C++17 compiler and then this package again",
        error,
    )
    _pack = None

USES_CPP = _pack is not None


class Pieces(NamedTuple):
    """Piece p is tokens [start_P[p], start_P[p] + length_P[p]) of document document_P[p]."""

    document_P: np.ndarray
    """int64, ascending"""
    start_P: np.ndarray
    """int64"""
    length_P: np.ndarray
    """int32, 1..seq_len"""


class PackedRows(NamedTuple):
    """Row r holds pieces piece_P[row_start_R1[r] : row_start_R1[r + 1]], in that order."""

    piece_P: np.ndarray
    """int64, a permutation of the pieces"""
    row_start_R1: np.ndarray
    """int64, from 0 to P"""

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.row_start_R1) - 1

    def pieces_of(self, row: int) -> np.ndarray:
        """The pieces of a row, int64, in order."""
        return self.piece_P[self.row_start_R1[row] : self.row_start_R1[row + 1]]


def pieces(lengths_D: np.ndarray, seq_len: int) -> Pieces:
    """Cuts every document longer than seq_len so that neighbouring pieces share one token.

    A piece's first token is never a target (no token of its document stands before it in the row). The shared token is
    therefore a target in the earlier piece and context in the later: every token but a document's first is a target
    exactly once, and no piece is a lone token unless its document is. Raises ValueError for seq_len < 2 and for an
    empty document.
    """
    if seq_len < 2:
        raise ValueError(f"seq_len is {seq_len}: a row needs at least 2 tokens, one to read and one to predict")
    lengths_D = np.asarray(lengths_D).astype(np.int64, casting="same_kind")
    if len(lengths_D) and lengths_D.min() < 1:
        document = int(np.argmax(lengths_D < 1))
        raise ValueError(f"document {document} has {lengths_D[document]} tokens: there is nothing to pack in it")
    stride = seq_len - 1
    num_pieces_D = np.maximum(1, -(-(lengths_D - 1) // stride))  # ceil((L - 1) / stride): targets over targets a piece
    document_P = np.repeat(np.arange(len(lengths_D)), num_pieces_D)
    first_piece_D = np.cumsum(num_pieces_D) - num_pieces_D
    start_P = (np.arange(len(document_P)) - first_piece_D[document_P]) * stride
    length_P = np.minimum(seq_len, lengths_D[document_P] - start_P).astype(np.int32)
    return Pieces(document_P, start_P, length_P)


def pack(length_P: np.ndarray, seq_len: int, seed: int, epoch: int) -> PackedRows:
    """Puts every piece into exactly one row of at most seq_len tokens; another epoch gives other rows in another order.

    Chance decides three things: which of several pieces of one length goes where, the order of the rows, and the order
    inside a row (as packed, the long documents would always come first). Raises ValueError for a negative seed or
    epoch, and where best_fit_decreasing does.
    """
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed and epoch must not be negative, they are {seed} and {epoch}")
    # NumPy promises that a bit generator's raw stream never changes, but not what Generator.permutation makes of it.
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    shuffled_P = np.argsort(bits.random_raw(len(length_P)), kind="stable")
    packed_row_P = best_fit_decreasing(length_P[shuffled_P], seq_len)  # equal lengths go by input order, so by chance
    num_rows = int(packed_row_P.max(initial=-1)) + 1
    row_of_packed_R = np.argsort(bits.random_raw(num_rows), kind="stable")
    row_P = row_of_packed_R[packed_row_P]
    # Sorted by row, and inside a row by fresh random bits: shuffled_P had its part in which pieces came together.
    key_P = row_P.astype(np.uint64) << 32 | bits.random_raw(len(length_P)) >> 32
    order_P = np.argsort(key_P, kind="stable")
    row_start_R1 = np.zeros(num_rows + 1, np.int64)
    np.cumsum(np.bincount(row_P, minlength=num_rows), out=row_start_R1[1:])
    return PackedRows(shuffled_P[order_P], row_start_R1)


def best_fit_decreasing(length_P: np.ndarray, capacity: int) -> np.ndarray:
    """Returns the row of each piece: int32 [P], rows numbered from 0 without gaps. In C++ where the extension is built.

    Raises ValueError for a length outside 1..capacity, and for a capacity outside 1..2**31 - 2.
    """
    if not 1 <= capacity < np.iinfo(np.int32).max:
        raise ValueError(f"the capacity of a row is {capacity} tokens: it must lie in 1..{np.iinfo(np.int32).max - 1}")
    length_P = np.asarray(length_P)
    if len(length_P) and not (length_P.min() >= 1 and length_P.max() <= capacity):
        piece = int(np.argmax((length_P < 1) | (length_P > capacity)))
        raise ValueError(f"piece {piece} has {length_P[piece]} tokens: it must have 1..{capacity} to fit into a row")
    length_P = np.ascontiguousarray(length_P.astype(np.int32, casting="same_kind"))
    if _pack is None:
        return best_fit_decreasing_reference(length_P, capacity)
    row_P = np.empty(len(length_P), np.int32)
    _pack.best_fit_decreasing(length_P, capacity, row_P)
    return row_P


def best_fit_decreasing_reference(length_P: np.ndarray, capacity: int) -> np.ndarray:
    """What csrc/pack.cpp computes, in Python: equal output, lengths already checked.

    Pieces are placed from the longest to the shortest, equal lengths in input order. Each goes into the row with the
    least space left that still holds it; among rows with equal space, into the one placed into last; into a new row
    when none has room.
    """
    rows_with = [[] for _ in range(capacity)]  # rows_with[space]: a stack, the row placed into last on top
    occupied = 0  # a bitmap in one Python integer: bit `space` is set where rows_with[space] is not empty
    num_rows = 0
    row_P = np.empty(len(length_P), np.int32)
    for piece in np.argsort(-length_P, kind="stable"):
        length = int(length_P[piece])
        if roomy := occupied >> length:
            space = length + (roomy & -roomy).bit_length() - 1  # the lowest bit set
            row = rows_with[space].pop()
            if not rows_with[space]:
                occupied ^= 1 << space
        else:
            space, row = capacity, num_rows
            num_rows += 1
        row_P[piece] = row
        space -= length
        if space > 0:  # a full row takes nothing more: every length is >= 1
            rows_with[space].append(row)
            occupied |= 1 << space
    return row_P
