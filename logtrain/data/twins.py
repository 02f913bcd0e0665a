"""What tells whether two texts are twins: equal but for their values (masked.py), or nearly so (near_twins.py)."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from logtrain.data.near_twins import SIGNATURE, signatures
from logtrain.text.masked import DATE_HASHES, KIND, beginnings, mask

try:
    from logtrain import _twins  # compiled from csrc/

    if not hasattr(_twins, "mask_and_sign"):
        raise ImportError(f"{_twins.__file__} is of another version")
except ImportError:  # `logtrain doctor` says so
    _twins = None

USES_CPP = _twins is not None

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
        masked, signatures_I = masked_and_signed(texts)
        return cls(hashes_of(masked, key), signatures_I)


def masked_and_signed(texts: Sequence[str]) -> tuple[list[bytes], np.ndarray]:
    """The texts with their values masked, and their signatures: uint8 [I, SIGNATURE]. In C++ where that is built, in a
    fifth of the time.
    """
    if _twins is None:
        return masked_and_signed_reference(texts)
    masked, signed = _twins.mask_and_sign(tuple(beginnings(texts)), KIND.tobytes(), DATE_HASHES.tobytes())
    return masked, np.frombuffer(signed, np.uint8).reshape(-1, SIGNATURE)


def masked_and_signed_reference(texts: Sequence[str]) -> tuple[list[bytes], np.ndarray]:
    """What csrc/twins.cpp computes, by numpy: equal output, the signatures uint8 [I, SIGNATURE]."""
    masked = mask(texts)
    return masked.texts, signatures(masked)


def hashes_of(texts: Iterable[bytes], key: bytes) -> np.ndarray:
    """A keyed hash of each text: uint64."""
    keyed, digests = hashlib.blake2b(digest_size=8, key=key), []
    for text in texts:
        hash = keyed.copy()  # a fifth faster than the key anew for each
        hash.update(text)
        digests.append(hash.digest())
    return np.frombuffer(b"".join(digests), "<u8")
