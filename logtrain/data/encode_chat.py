"""Conversations -> tokens, none longer than a packed row, and what became of each conversation.

What is longer than `seq_len` tokens is dealt with by `too_long`:

    error              the run stops there
    drop               it is left out
    split_turns        its exchanges (a question with its answer) go on in another conversation, which begins with the
                       same system turn, as many in each as fit; it is left out if one exchange alone does not
    truncate_content   its longest questions lose their middle, a visible mark standing there; never the template, the
                       system turn or an answer. It is left out if it does not fit with only the mark left of each

Legend: N tokens and D documents of a batch, C its conversations.
"""

import bisect
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from logtrain.data.encode import Encoded
from logtrain.data.shards import CONTEXT
from logtrain.text.chat_template import ChatTemplate, TrainOn, Turn
from logtrain.text.tokenizer import Tokenizer

TooLong = Literal["error", "drop", "split_turns", "truncate_content"]
CASES = ("whole", "truncated", "split", "dropped", "bad", "too long")
WHOLE, TRUNCATED, SPLIT, DROPPED, BAD, TOO_LONG = range(len(CASES))
MARKER = "\n[...]\n"
OUTCOME = np.dtype([("case", "u1"), ("tokens", "<i8"), ("targets", "<i8")])  # as it was read, whole
PART_BITS = 16
Sample = tuple[list[int], np.ndarray]  # ids, and whether each is a target


class EncodedChats(NamedTuple):
    documents: Encoded
    """hashes_D: 48 bits of the conversation, then the number of the part, so that its parts are on the same side of the
    split into training and validation and yet no duplicates of each other"""
    chat_D: np.ndarray
    """int64: the conversation that each document is of"""
    outcomes_C: np.ndarray
    """OUTCOME"""
    problems: dict[int, str]
    """why a conversation is BAD"""


@dataclass(frozen=True)
class ChatFraming:
    """How conversations become documents."""

    template: str
    date: str
    train_on: TrainOn
    too_long: TooLong
    seq_len: int
    hash_key: bytes

    def encode(self, chats: Sequence[Sequence[Turn]], tokenizer: Tokenizer) -> EncodedChats:
        template = _template(tokenizer, self.template, self.date)
        outcomes_C = np.zeros(len(chats), OUTCOME)
        tokens, lengths, targets, hashes, chat_of, problems = [], [], [], [], [], {}
        for i, turns in enumerate(chats):
            digest = hashlib.blake2b(json.dumps(turns).encode(), digest_size=8, key=self.hash_key).digest()
            hash = int.from_bytes(digest, "little") >> PART_BITS << PART_BITS
            try:
                whole = template.encode(turns, self.train_on)
                case, samples = self._fit(turns, whole, template)
            except ValueError as error:
                problems[i] = str(error)
                outcomes_C[i] = (BAD, 0, 0)
                continue
            outcomes_C[i] = (case, len(whole[0]), whole[1][1:].sum())
            for part, (ids, is_target) in enumerate(samples):
                tokens.append(np.array(ids, np.uint32) | np.where(is_target, np.uint32(0), np.uint32(CONTEXT)))
                lengths.append(len(ids))
                targets.append(is_target[1:].sum())
                hashes.append(hash | min(part, (1 << PART_BITS) - 1))
                chat_of.append(i)
        documents = Encoded(
            np.concatenate([np.empty(0, np.uint32), *tokens]),
            np.array(lengths, np.int32),
            np.array(targets, np.int32),
            np.array(hashes, np.uint64),
        )
        return EncodedChats(documents, np.array(chat_of, np.int64), outcomes_C, problems)

    def _fit(self, turns: Sequence[Turn], whole: Sample, template: ChatTemplate) -> tuple[int, list[Sample]]:
        if len(whole[0]) <= self.seq_len:
            return WHOLE, [whole]
        if self.too_long == "error":
            return TOO_LONG, []
        if self.too_long == "split_turns" and (samples := self._split(turns, template)):
            return SPLIT, samples
        if self.too_long == "truncate_content" and (sample := self._truncate(turns, whole, template)):
            return TRUNCATED, [sample]
        return DROPPED, []

    def _split(self, turns: Sequence[Turn], template: ChatTemplate) -> list[Sample]:
        """As few conversations as the exchanges fit into, in order; none if one exchange does not fit."""
        first = int(turns[0].role == "system")
        samples, start = [], first
        while start < len(turns):
            fitting = None
            for stop in range(start + 2, len(turns) + 1, 2):
                sample = template.encode([*turns[:first], *turns[start:stop]], self.train_on)
                if len(sample[0]) > self.seq_len:
                    break
                fitting = sample, stop
            if fitting is None:
                return []
            sample, start = fitting
            samples.append(sample)
        return samples

    def _truncate(self, turns: Sequence[Turn], sample: Sample, template: ChatTemplate) -> Sample | None:
        """The conversation with every question of more than so many tokens cut down to so many, the marker included.

        How many is found by counting, and then once or twice more by trying: a cut text has not always just as many
        tokens fewer as were taken out of it.
        """
        spans = {
            i: template.tokenizer.encode_with_spans(turn.content, spelled=False)[1]
            for i, turn in enumerate(turns)
            if turn.role == "user"
        }
        lengths = [len(spans_N) for spans_N in spans.values()]
        marker = len(template.tokenizer.encode(MARKER))

        def removed(level: int) -> int:
            return sum(max(0, length - level) for length in lengths)

        level = max(lengths)
        while (excess := len(sample[0]) - self.seq_len) > 0:
            if level <= marker:
                return None
            goal = removed(level) + excess
            levels = range(marker, level)
            level = marker + max(0, bisect.bisect_right(levels, -goal, key=lambda tokens: -removed(tokens)) - 1)
            cut = {i: shorten(turns[i].content, spans[i], level, level - marker) for i in spans}
            shorter = [turn._replace(content=cut.get(i, turn.content)) for i, turn in enumerate(turns)]
            sample = template.encode(shorter, self.train_on)
        return sample


def shorten(text: str, spans: Sequence[tuple[int, int]], most: int, keep: int) -> str:
    """A text of more than `most` tokens with `keep` of them, half at each end, and the marker between."""
    if len(spans) <= most:
        return text
    head = spans[(keep + 1) // 2 - 1][1] if keep else 0
    tail = max(head, spans[-(keep // 2)][0]) if keep > 1 else len(text)
    return text[:head] + MARKER + text[tail:]


@functools.lru_cache(maxsize=4)  # of a worker, which meets it with every batch
def _template(tokenizer: Tokenizer, source: str, date: str) -> ChatTemplate:
    return ChatTemplate(tokenizer, source, date)
