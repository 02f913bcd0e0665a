"""Conversations -> tokens, none longer than a packed row, and what became of each conversation.

What is longer than `seq_len` tokens is dealt with by `too_long`:

    error              the run stops there
    drop               it is left out
    split_turns        its exchanges (a question with its answer) go on in another conversation, which begins with the
                       same system turn, as many in each as fit; it is left out if one exchange alone does not
    truncate_answer    its questions are cut to half a row, likewise, and then what is behind the row's end is left out:
                       the end of an answer, which is no end to be learned, and what follows it
    truncate_content   its longest questions lose their middle, a visible mark standing there; never the template, the
                       system turn or an answer. It is left out if it does not fit with only the mark left of each
"""

import bisect
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from logtrain.data.config import TooLong
from logtrain.data.encode import BAD, CUT, DROPPED, OUTCOME, SPLIT, TOO_LONG, TRUNCATED, WHOLE, Encoded, lost_of
from logtrain.data.shards import CONTEXT
from logtrain.data.twins import PART_BITS, Twins, hashes_of
from logtrain.text.chat_template import ChatTemplate, Turn
from logtrain.text.config import TrainOn
from logtrain.text.tokenizer import Tokenizer

MARKER = "\n[...]\n"


class Sample(NamedTuple):
    """A conversation as it is trained on."""

    ids: list[int]
    is_target: np.ndarray
    """bool [ids]"""

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted; the first is not, for nothing stands before it."""
        return int(self.is_target[1:].sum())


@dataclass(frozen=True)
class ChatEncoder:
    """A conversation becomes a document, or several or none where it is too long, by a chat template."""

    template: str
    date: str
    train_on: TrainOn
    too_long: TooLong
    seq_len: int
    hash_key: bytes

    def encode(self, items: Sequence[Sequence[Turn]], tokenizer: Tokenizer) -> Encoded:
        """`items`: the turns of conversations.

        A document's hashes are 48 bits of the conversation, then the number of the part, so that its parts are on the
        same side of the split into training and validation and yet no duplicates of each other.
        """
        template = _template(tokenizer, self.template, self.date)
        outcomes_I = np.zeros(len(items), OUTCOME)
        samples_D: list[Sample] = []
        item_D, part_D, problems = [], [], {}
        for i, turns in enumerate(items):
            try:
                outcomes_I[i], samples = self.samples_of(turns, template)
            except ValueError as error:
                problems[i] = str(error)
                outcomes_I[i] = (BAD, 0, 0)
                continue
            samples_D += samples
            item_D += [i] * len(samples)
            part_D += [min(part, (1 << PART_BITS) - 1) for part in range(len(samples))]
        tokens_N = np.concatenate([np.empty(0, np.uint32), *map(_stored, samples_D)])
        lengths_D = np.array([len(sample.ids) for sample in samples_D], np.int32)
        texts = ["" if i in problems else "".join(turn.content for turn in turns) for i, turns in enumerate(items)]
        hashes_I = hashes_of((json.dumps(turns).encode() for turns in items), self.hash_key)
        twins = Twins.of([_spoken(turns) for turns in items], self.hash_key)
        item_D, part_D = np.array(item_D, np.int64), np.array(part_D, np.uint64)
        return Encoded(
            tokens_N=tokens_N,
            lengths_D=lengths_D,
            targets_D=np.array([sample.num_targets for sample in samples_D], np.int32),
            hashes_D=of_part(hashes_I[item_D], part_D),
            twins_D=of_part(twins.hashes_I[item_D], part_D),
            signatures_D=twins.signatures_I[item_D],
            item_D=item_D,
            outcomes_I=outcomes_I,
            problems=problems,
            lost=lost_of(tokenizer, texts, tokens_N & np.uint32(CONTEXT - 1), lengths_D, item_D),
        )

    def samples_of(self, turns: Sequence[Turn], template: ChatTemplate) -> tuple[tuple[int, int, int], list[Sample]]:
        """What becomes of an item, as in OUTCOME, and what is trained on. Raises ValueError for one of no use."""
        whole = Sample(*template.encode(turns, self.train_on))
        case, samples = self._fit(turns, whole, template)
        return (case, len(whole.ids), whole.num_targets), samples

    def _fit(self, turns: Sequence[Turn], whole: Sample, template: ChatTemplate) -> tuple[int, list[Sample]]:
        """What becomes of a conversation: one of CASES, and what is trained on."""
        if len(whole.ids) <= self.seq_len:
            return WHOLE, [whole]
        if self.too_long == "error":
            return TOO_LONG, []
        if self.too_long == "split_turns" and (samples := self._split(turns, template)):
            return SPLIT, samples
        if self.too_long == "truncate_answer" and (shorter := self._cut(turns, template)):
            sample = Sample(shorter.ids[: self.seq_len], shorter.is_target[: self.seq_len])
            return (TRUNCATED if len(shorter.ids) <= self.seq_len else CUT), [sample]
        if self.too_long in ("auto", "truncate_content") and (sample := self._truncate(turns, whole, template)):
            return TRUNCATED, [sample]
        return DROPPED, []

    def _split(self, turns: Sequence[Turn], template: ChatTemplate) -> list[Sample]:
        """As few conversations as the exchanges fit into, in order; none if one exchange does not fit."""
        first = int(turns[0].role == "system")
        samples, start = [], first
        while start < len(turns):
            fitting = None
            for stop in range(start + 2, len(turns) + 1, 2):
                sample = Sample(*template.encode([*turns[:first], *turns[start:stop]], self.train_on))
                if len(sample.ids) > self.seq_len:
                    break
                fitting = sample, stop
            if fitting is None:
                return []
            sample, start = fitting
            samples.append(sample)
        return samples

    def _cut(self, turns: Sequence[Turn], template: ChatTemplate) -> Sample | None:
        """The conversation with its questions shortened: to half a row at most, and where that leaves no target in the
        first `seq_len` tokens, to a quarter, and so on; None where nothing does.
        """
        tokenizer = template.tokenizer
        num_marker = len(tokenizer.encode(MARKER))
        most = self.seq_len // 2
        while most > num_marker:
            shorter = [
                turn._replace(content=shorten(turn.content, spans, most, most - num_marker))
                if turn.role == "user"
                else turn
                for turn in turns
                for spans in [tokenizer.encode_with_spans(turn.content, spelled=False)[1]]
            ]
            whole = Sample(*template.encode(shorter, self.train_on))
            if whole.is_target[1 : self.seq_len].any():
                return whole
            most //= 2
        return None

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
        num_marker = len(template.tokenizer.encode(MARKER))

        def removed(level: int) -> int:
            return sum(max(0, length - level) for length in lengths)

        level = max(lengths)
        while (excess := len(sample.ids) - self.seq_len) > 0:
            if level <= num_marker:
                return None
            goal = removed(level) + excess
            levels = range(num_marker, level)
            level = num_marker + max(0, bisect.bisect_right(levels, -goal, key=lambda tokens: -removed(tokens)) - 1)
            cut = {i: shorten(turns[i].content, spans[i], level, level - num_marker) for i in spans}
            shorter = [turn._replace(content=cut.get(i, turn.content)) for i, turn in enumerate(turns)]
            sample = Sample(*template.encode(shorter, self.train_on))
        return sample


def shorten(text: str, spans: Sequence[tuple[int, int]], most: int, keep: int) -> str:
    """A text of more than `most` tokens with `keep` of them, half at each end, and the marker between."""
    if len(spans) <= most:
        return text
    head = spans[(keep + 1) // 2 - 1][1] if keep else 0
    tail = max(head, spans[-(keep // 2)][0]) if keep > 1 else len(text)
    return text[:head] + MARKER + text[tail:]


def _spoken(turns: Sequence[Turn]) -> str:
    return "".join(f"{turn.role}: {turn.content}\n" for turn in turns)


def of_part(hash_D: np.ndarray, part_D: np.ndarray) -> np.ndarray:
    """A conversation's hash with the number of the part in its lowest bits: uint64 [D]."""
    return hash_D >> np.uint64(PART_BITS) << np.uint64(PART_BITS) | part_D


def _stored(sample: Sample) -> np.ndarray:
    """The tokens of a sample as they are in a shard."""
    return np.array(sample.ids, np.uint32) | np.where(sample.is_target, np.uint32(0), np.uint32(CONTEXT))


@functools.lru_cache(maxsize=4)  # of a worker, which meets it with every chunk
def _template(tokenizer: Tokenizer, source: str, date: str) -> ChatTemplate:
    return ChatTemplate(tokenizer, source, date)
