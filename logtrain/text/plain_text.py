"""Text -> ids by the tokenizers library, where nothing that a text says is ever a mark.

A mark is a token that says what text is, not a part of it: the special tokens of a tokenizer's files, those that mark
the turns of a chat, and whatever else its chat template writes by name. The library can leave special tokens
unrecognised (`encode_special_tokens`), but added tokens with `special: false`, as `add_tokens` makes them, it looks for
in every text: so all marks are made special here. Some models reach a mark without that, as a word of their own
vocabulary; of those the word is renamed to one that no text has.

A text between two marks is not a text of its own: some normalisers and pre-tokenizers write a space before the first
word of all, or strip the last one. So such a stretch is encoded between two tokens that stand for the marks beside it.
"""

import functools
import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken

SLICE_CHARS = 1 << 14
"""Of the texts in a call of the library, whose results are an object a token: those of 2^18 fall out of the processor's
cache, so that freeing them takes 15% of the time."""


class Encoding(NamedTuple):
    """A text as token ids, and where each stands in it."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """The characters [start, end) that each id stands for; the ids of one character share its span."""


class PlainText:
    """An opened tokenizer that no longer knows its marks. tokenizer: the library's. is_changed: whether its marks have
    other flags or names than in the file, so that only another one can decode ids.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, marks: dict[str, int]):
        """`tokenizer`: the caller's, which is changed. `marks`: their ids by their texts."""
        tokenizer.encode_special_tokens = True
        added = tokenizer.get_added_tokens_decoder()
        plain = [text for text, id in marks.items() if id in added and not added[id].special]
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in plain])
        if words := words_that_are_marks(tokenizer, marks):
            tokenizer = renamed(tokenizer, words)
            tokenizer.encode_special_tokens = True
        self.tokenizer, self.is_changed = tokenizer, bool(plain or words)
        self._is_normalized = {id: token.normalized for id, token in added.items()}
        # No text has their names, for nobody knows them before. Only those marks are found in a normalised text that
        # are themselves normalised, and the text beside them is another one for it.
        self._border = {flag: f"\U000f0000{secrets.token_hex(16)}{int(flag)}" for flag in (False, True)}

    @functools.cached_property
    def _with_borders(self) -> tokenizers.Tokenizer:
        """A copy that knows the borders; of the tokenizer itself their ids may be those of a model's spare rows."""
        copy = tokenizers.Tokenizer.from_str(self.tokenizer.to_str())
        copy.encode_special_tokens = True
        copy.add_tokens([AddedToken(text, normalized=flag) for flag, text in self._border.items()])
        return copy

    def encode(self, text: str) -> Encoding:
        """Returns ids and spans of a whole text."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return Encoding(encoding.ids, encoding.offsets)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text."""
        return [
            encoding.ids
            for some in slices(texts)
            for encoding in self.tokenizer.encode_batch_fast(some, add_special_tokens=False)
        ]

    def encode_between(self, text: str, before: int | None, after: int | None) -> Encoding:
        """Returns ids and spans of a text as it is between two marks, which are given by their ids; None: there is
        none, for the text is the first, or the last.
        """
        left, right = (
            "" if mark is None else self._border[self._is_normalized.get(mark, False)] for mark in (before, after)
        )
        tokenizer = self._with_borders
        borders = {tokenizer.token_to_id(text) for text in self._border.values()}
        encoding = tokenizer.encode(f"{left}{text}{right}", add_special_tokens=False)
        found = [
            (id, (max(0, start - len(left)), max(0, min(end - len(left), len(text)))))
            for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if id not in borders
        ]
        return Encoding([id for id, _ in found], [span for _, span in found])

    def largest_id(self) -> int:
        """Returns the largest id of the tokenizer's own; -1 where there is none."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def slices(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in order, about `SLICE_CHARS` at a time."""
    first, num_chars = 0, 0
    for end, text in enumerate(texts, 1):
        num_chars += len(text)
        if num_chars >= SLICE_CHARS or end == len(texts):
            yield texts[first:end]
            first, num_chars = end, 0


def words_that_are_marks(tokenizer: tokenizers.Tokenizer, marks: dict[str, int]) -> set[str]:
    """Returns the marks whose text becomes their own id, although no special token is looked for: words of the model's
    vocabulary.
    """
    unknown = getattr(tokenizer.model, "unk_token", None)  # stands for any text, also for its own
    texts = [text for text in marks if text != unknown]
    encodings = tokenizer.encode_batch([f"{text} {text}" for text in texts] + texts, add_special_tokens=False)
    return {text for text, encoding in zip(texts * 2, encodings, strict=True) if marks[text] in encoding.ids}


def renamed(tokenizer: tokenizers.Tokenizer, words: set[str]) -> tokenizers.Tokenizer:
    """Returns a copy of a tokenizer in which these words of the vocabulary have names that no text has."""
    nonce = secrets.token_hex(16)
    facts = json.loads(tokenizer.to_str())

    def name(word: Any) -> Any:
        return f"{word}{nonce}" if word in words else word

    model = facts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {name(word): id for word, id in model["vocab"].items()}
    else:
        model["vocab"] = [[name(word), *rest] for word, *rest in model["vocab"]]
    if "merges" in model:
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [pair for pair in pairs if "".join(pair) not in words and words.isdisjoint(pair)]
    for token in facts["added_tokens"]:
        token["content"] = name(token["content"])
    return tokenizers.Tokenizer.from_str(json.dumps(facts))
