"""Texts -> tokens, and what an encoder of any kind gives: documents, and what became of each text or conversation.

Legend: I items (texts, or conversations) of a chunk, D the documents that they become, N the tokens of these.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from logtrain.data.lost_text import Lost, lost_text_of
from logtrain.data.twins import Twins, hashes_of
from logtrain.text.tokenizer import Tokenizer

CASES = ("whole", "truncated", "split", "cut", "dropped", "bad", "too long")
WHOLE, TRUNCATED, SPLIT, CUT, DROPPED, BAD, TOO_LONG = range(len(CASES))
OUTCOME = np.dtype([("case", "u1"), ("tokens", "<i8"), ("targets", "<i8")])  # of an item as it was read, whole


class Encoded(NamedTuple):
    """The documents of a chunk, and the outcomes of its items."""

    tokens_N: np.ndarray
    """uint32: the documents end to end, bit 31 set for context"""
    lengths_D: np.ndarray
    """int32: tokens"""
    targets_D: np.ndarray
    """int32: tokens that are predicted"""
    hashes_D: np.ndarray
    """uint64: keyed hash of the text; equal for duplicates"""
    twins_D: np.ndarray
    """uint64: the same of the text with its values masked; equal for twins"""
    signatures_D: np.ndarray
    """uint8 [D, SIGNATURE]: by which near-twins are found"""
    item_D: np.ndarray
    """int64: the item that each document comes from"""
    outcomes_I: np.ndarray
    """OUTCOME"""
    problems: dict[int, str]
    """why an item is BAD"""
    lost: dict[int, Lost]
    """what the tokenizer has no token for, of an item that has such text"""


class Encoder(Protocol):
    """What makes documents of items. It is sent to worker processes."""

    def encode(self, items: Sequence[Any], tokenizer: Tokenizer) -> Encoded:
        """`items`: texts, or the turns of conversations; each encoder takes one of the two."""
        ...


def encode(encoder: Encoder, items: Sequence[Any], tokenizer: Tokenizer) -> Encoded:
    """What the encoder makes of the items. Raises ValueError where the tokenizer gives up, as over a regular expression
    that goes on and on.
    """
    try:
        return encoder.encode(items, tokenizer)
    except BaseException as error:
        if type(error) is Exception or type(error).__name__ == "PanicException":  # only that library raises these
            raise ValueError(f"the tokenizer fails ({' '.join(str(error).split())[:200]})") from None
        raise


@dataclass(frozen=True)
class TextEncoder:
    """A text becomes a document as it stands: [BOS] ids [document end], each token but the first a target."""

    bos_id: int | None
    document_end_id: int
    hash_key: bytes

    def encode(self, items: Sequence[str], tokenizer: Tokenizer) -> Encoded:
        """`items`: texts."""
        tokens, lengths = array("I"), []
        for ids in tokenizer.encode_batch(items):
            start = len(tokens)
            if self.bos_id is not None:
                tokens.append(self.bos_id)
            tokens.fromlist(ids)
            tokens.append(self.document_end_id)
            lengths.append(len(tokens) - start)
        lengths_D = np.array(lengths, np.int32)
        outcomes_I = np.zeros(len(items), OUTCOME)
        outcomes_I["case"], outcomes_I["tokens"], outcomes_I["targets"] = WHOLE, lengths_D, lengths_D - 1
        tokens_N = np.frombuffer(tokens, np.uint32)
        twins = Twins.of(items, self.hash_key)
        return Encoded(
            tokens_N=tokens_N,
            lengths_D=lengths_D,
            targets_D=lengths_D - 1,
            hashes_D=hashes_of((text.encode() for text in items), self.hash_key),
            twins_D=twins.hashes_I,
            signatures_D=twins.signatures_I,
            item_D=np.arange(len(items)),
            outcomes_I=outcomes_I,
            problems={},
            lost=lost_of(tokenizer, items, tokens_N, lengths_D, np.arange(len(items))),
        )


def lost_of(
    tokenizer: Tokenizer, texts: Sequence[str], tokens_N: np.ndarray, lengths_D: np.ndarray, item_D: np.ndarray
) -> dict[int, Lost]:
    """What is lost of each item; `texts`: of the items, the rest in the dtypes of Encoded."""
    unknown = np.flatnonzero(tokens_N == tokenizer.unknown_id) if tokenizer.unknown_id is not None else ()
    with_unknown = item_D[np.searchsorted(np.cumsum(lengths_D), unknown, side="right")] if len(unknown) else ()
    return lost_text_of(tokenizer).find(texts, with_unknown)
