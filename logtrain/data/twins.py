"""What tells whether two texts are twins: equal but for their values (masked.py), or nearly so (near_twins.py)."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from logtrain.data.near_twins import signatures
from logtrain.text.masked import mask

PART_BITS = 16  # of a hash: which part of a conversation a document is, and no matter on which side of the split it is


class Twins(NamedTuple):
    """Of the texts of a chunk."""

    hashes_I: np.ndarray
    """uint64: keyed hash of the text with its values masked"""
    signatures_I: np.ndarray
    """uint8 [I, SIGNATURE]: of its words"""

    @classmethod
    def of(cls, texts: Sequence[str], key: bytes) -> "Twins":
        """Of each of `texts`, whatever the others are."""
        masked = mask(texts)
        return cls(hashes_of(masked.texts, key), signatures(masked))


def hashes_of(texts: Iterable[bytes], key: bytes) -> np.ndarray:
    """A keyed hash of each text: uint64."""
    keyed, digests = hashlib.blake2b(digest_size=8, key=key), []
    for text in texts:
        hash = keyed.copy()  # a fifth faster than the key anew for each
        hash.update(text)
        digests.append(hash.digest())
    return np.frombuffer(b"".join(digests), "<u8")
