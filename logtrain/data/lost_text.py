"""Text that a tokenizer loses: what it has no token for is dropped, or becomes one "unknown" token for all.

Whether a text is whole is seen by decoding its ids again, modulo what the tokenizer normalises on purpose (letters to
lower case, U+FB01 to fi). That takes as long as encoding, so it is done where there is reason to: for a text with a
character that alone does not come back, with an unknown token, and for a sample of every chunk. If the sample of a
chunk has lost something for which there was no reason, so may the rest: then all of the chunk is decoded.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from logtrain.text.tokenizer import Tokenizer

SAMPLE_CHARS = 2000  # of some 260,000 in a chunk
PART_CHARS = 1 << 20
UNSEEN, KEPT, SUSPECT = range(3)


class Lost(NamedTuple):
    """What is lost of a text."""

    count: int
    """characters"""
    which: str
    """some of them"""


class LostText:
    """Finds what one tokenizer loses of texts."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._states = np.zeros(0x110000, np.uint8)  # by code point

    def find(self, texts: Sequence[str], with_unknown: Sequence[int] | np.ndarray = ()) -> dict[int, Lost]:
        """Index of a text -> what is lost of it. `with_unknown`: indices of texts that have got an unknown token."""
        suspects = self._suspects("".join(texts))
        wanted = {*map(int, with_unknown)}
        if suspects:
            wanted |= {i for i, text in enumerate(texts) if not suspects.isdisjoint(text)}
        if texts:
            sample = sum(map(len, texts)) % len(texts)
            if sample not in wanted and lost_characters(self.tokenizer, texts[sample][:SAMPLE_CHARS]):
                wanted = set(range(len(texts)))
        found = {i: lost_characters(self.tokenizer, texts[i]) for i in sorted(wanted)}
        return {i: Lost(lost.total(), "".join(sorted(lost))[:10]) for i, lost in found.items() if lost}

    def _suspects(self, text: str) -> set[str]:
        """The characters of a text that do not come back when they stand alone between two letters."""
        found = set()
        kept = np.flatnonzero(self._states[:128] == KEPT).astype(np.uint8).tobytes()
        for start in range(0, len(text), PART_CHARS):
            part = text[start : start + PART_CHARS].encode().translate(None, kept).decode()  # most are kept: less to do
            codes = np.frombuffer(part.encode("utf-32-le"), np.uint32)
            states = self._states[codes]
            if not states.all():
                for code in np.unique(codes[states == UNSEEN]).tolist():
                    lost = lost_characters(self.tokenizer, f"x{chr(code)}x")
                    self._states[code] = SUSPECT if lost else KEPT
                states = self._states[codes]
            found |= set(map(chr, np.unique(codes[states == SUSPECT]).tolist()))
        return found


@functools.lru_cache(maxsize=4)
def lost_text_of(tokenizer: Tokenizer) -> LostText:
    """That of a tokenizer, which remembers the characters that it has met."""
    return LostText(tokenizer)


def lost_characters(tokenizer: Tokenizer, text: str) -> Counter[str]:
    """The characters of the normalised text that its ids do not give back, each as often as it is lost."""
    before = tokenizer.normalized(text).replace("\u2581", " ")  # what sentencepiece writes for a space
    after = tokenizer.decode(tokenizer.encode(text)).replace("\u2581", " ")
    if before == after:
        return Counter()
    # A space before the first word may be the normaliser's, and stand for none.
    return Counter(before.removeprefix(" ")) - Counter(after)


def refuse_empty(tokenizer: Tokenizer) -> None:
    """Raises ValueError for a tokenizer that has no token for any text."""
    if tokenizer.vocab_size <= len(tokenizer.special_tokens()):
        raise ValueError(f"{tokenizer.folder}: the tokenizer has no tokens but special ones; take that of the model")
