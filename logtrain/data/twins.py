"""What tells whether two texts are twins: equal but for their values (masked.py), or nearly so (near_twins.py)."""

import hashlib
from collections.abc import Sequence
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
        return cls(np.array([hash_of(text, key) for text in masked.texts], np.uint64), signatures(masked))


def hash_of(text: bytes, key: bytes) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=key).digest(), "little")
