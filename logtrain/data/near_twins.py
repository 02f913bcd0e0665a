"""Documents that are nearly equal but for their values, found by MinHash (Broder 1997): of the sets of three words in a
row of two masked texts, how large a share of their union is in both (the Jaccard index)?

The smallest hash of a set under one of 64 hash functions is equal for two sets with just this probability, so a
document is signed with 8 bits of each of these, and the share of equal ones estimates the index, with a standard error
of 0.05 at 0.8. Documents that agree in one of 16 bands of 4 are compared; 0.8^4 = 0.41, so that one pair of 0.8 in
5,000 is missed.

Legend: D documents, W their words, H held documents with different signatures, S values of a signature.
"""

from pathlib import Path

import numpy as np

from logtrain.data.mapped import let_go
from logtrain.text.masked import Masked, mixed

SIGNATURE = 64
BAND = np.dtype("<u4")  # 4 values
NEAR = 0.8  # a near-twin: the report counts these
SURELY_LESS = 0.7  # estimated; 2 standard errors below
MOST_COMPARED = 64  # held documents with the band of another that it is compared with
BLOCK = 1 << 14  # documents
FACTORS_S = mixed(np.arange(1, SIGNATURE + 1, dtype=np.uint64)).astype(np.uint32) | np.uint32(1)


def signatures(masked: Masked) -> np.ndarray:
    """uint8 [D, S]. Each word begins a set of three, also the last ones, so that no text is without."""
    if not masked.texts:
        return np.empty((0, SIGNATURE), np.uint8)
    first_W = masked.words_W
    second_W, third_W = (np.append(first_W[n:], np.zeros(n, np.uint64)) for n in (1, 2))
    ends_D = masked.ends_I
    second_W[ends_D - 1] = third_W[ends_D - 1] = 0
    third_W[np.maximum(ends_D - 2, 0)] = 0
    set_W = mixed(mixed(mixed(first_W) ^ second_W) ^ third_W)
    set_W = set_W.astype(np.uint32)
    hash_W, shifted_W = np.empty_like(set_W), np.empty_like(set_W)
    signature_SD = np.empty((SIGNATURE, len(ends_D)), np.uint32)
    starts_D = np.append(0, ends_D[:-1])
    for factor, smallest_D in zip(FACTORS_S, signature_SD, strict=True):
        np.multiply(set_W, factor, out=hash_W)
        np.right_shift(hash_W, np.uint32(15), out=shifted_W)
        hash_W ^= shifted_W
        np.minimum.reduceat(hash_W, starts_D, out=smallest_D)
    return np.ascontiguousarray((signature_SD * np.uint32(0x9E3779B1) >> np.uint32(24)).T.astype(np.uint8))


class Signatures:
    """Signatures of documents in a file, for there are too many for the memory: 64 bytes each."""

    def __init__(self, file: Path):
        self.file = file
        self._stream = open(file, "xb")  # noqa: SIM115 (closed by close())
        self.num_documents = 0

    def add(self, signatures_D: np.ndarray) -> None:
        """uint8 [D, S]."""
        self._stream.write(np.ascontiguousarray(signatures_D).data)
        self.num_documents += len(signatures_D)

    def read(self) -> np.ndarray:
        """uint8 [D, S], memory-mapped; none can be added any more."""
        self._stream.close()
        if not self.num_documents:
            return np.empty((0, SIGNATURE), np.uint8)
        return np.memmap(self.file, np.uint8, "r", shape=(self.num_documents, SIGNATURE)).view(np.ndarray)

    def delete(self) -> None:
        """Remove the file."""
        self._stream.close()
        self.file.unlink(missing_ok=True)


def near_any(held_H: np.ndarray, others_D: np.ndarray, least: float) -> np.ndarray:
    """Whether each held document has one like it, of an estimated Jaccard index of `least`, among others: bool [H].

    Both uint8 [.., S]; `others_D` is read in blocks. Held documents should have different signatures.
    """
    found_H = np.zeros(len(held_H), bool)
    for band in range(SIGNATURE // BAND.itemsize):
        keys_H = _band(held_H, band)
        order = np.argsort(keys_H, kind="stable")
        order = order[~found_H[order]]
        sorted_H = keys_H[order]
        for start in range(0, len(others_D), BLOCK):
            if not len(order):
                return found_H
            block_D = others_D[start : start + BLOCK]
            keys_D = _band(block_D, band)
            let_go([others_D])  # else all of it would come to be in memory, 61 MiB of a million documents
            first_D = np.searchsorted(sorted_H, keys_D)
            hits = np.flatnonzero(sorted_H[np.minimum(first_D, len(sorted_H) - 1)] == keys_D)
            if not len(hits):
                continue
            count_D = np.searchsorted(sorted_H, keys_D[hits], side="right") - first_D[hits]
            held, other = _pairs(first_D[hits], np.minimum(count_D, MOST_COMPARED), hits)
            for some in range(0, len(held), BLOCK):
                held_some = order[held[some : some + BLOCK]]
                equal = (held_H[held_some] == block_D[other[some : some + BLOCK]]).mean(1)
                found_H[held_some[(equal - 1 / 256) / (1 - 1 / 256) >= least]] = True
            order = order[~found_H[order]]
            sorted_H = keys_H[order]
    return found_H


def _band(signatures_D: np.ndarray, band: int) -> np.ndarray:
    columns = signatures_D[:, band * BAND.itemsize : (band + 1) * BAND.itemsize]
    return np.ascontiguousarray(columns).view(BAND)[:, 0]


def _pairs(first: np.ndarray, count: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each of `other` beside `count` numbers from `first` on."""
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(first, count) + within, np.repeat(other, count)
