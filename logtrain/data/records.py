"""Lines of a raw log -> records, and which of them are trained on.

A record is a line, or a block: a line that begins one and what goes on below it, such as a stack trace. A line begins a
block if it is not indented and its word at one place has one shape, which are found by themselves: those that most of
the first lines have in common. So `2024-01-01 10:00:00,123 ERROR` and `[Sun Dec 04 04:47:44 2005]` begin one, and
`Caused by: ...` does not. Where most are JSON objects, each begins one. Where there is no time, and many have a
level in one place, as `[ERROR] disk full`, a level begins one.

System logs are repetitions for the most part: of each template (text/log_templates.py) only the first N records may be
kept, and values may be masked.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from logtrain.data.lines import BadRow
from logtrain.text.log_templates import LogTemplates
from logtrain.text.masked import MOST_BYTES, mask
from logtrain.text.severity import LEVELS

Line = str | BadRow
HEAD_LINES = 1000  # in which the rule is found
LEAST_SHARE = 0.1  # of them: a log may be stack traces for the most part
OFTEN, OFTEN_OF_TIMES = 0.6, 0.4  # of the most frequent shape, which may be a number that traces have in the same place
LEAST_LEVELS = 0.25  # of the lines that are not indented: a trace has up to three of these
PLACES = 4  # words of a line that are looked at
MOST_CHARS = 1 << 20  # of a block; what is longer goes on in another
BATCH_CHARS = 1 << 16  # whose templates are found at a time
MOST_VARIANTS = 1 << 18
"""Lines different with their values masked, some 100 MB. After so many templates are counted anew."""
TIME = "0:0:0"
COLOURS = re.compile(r"\x1b\[[\d;]*m")  # of a terminal
SHAPES = (  # in this order
    (COLOURS, ""),
    (re.compile(r"\b(?=[a-f]*\d)[0-9a-f]{8,}\b", re.IGNORECASE), "0"),
    (re.compile(r"\d+"), "0"),
    (re.compile(r"(?<=0)T(?=0:)"), "_"),  # 2024-01-01T10:00:00Z
    (re.compile(r"(?<=0)Z\b"), ""),
    (re.compile(r"[A-Za-z]+"), "a"),
    (re.compile(r"(?<=0:0:0)[.,]0"), ""),  # some loggers leave .000 out
)
OBJECT = "{"
LEVEL = "LEVEL"
FIRST_LETTERS = re.compile(r"[\[({<*#|-]*([A-Za-z]+)(?![\w.'])")  # [INFO], warning:, ERROR:root:disk
OF_TRACES = ("panic", "oops", "errors", "warnings")  # which a level is seldom called


class Beginning(NamedTuple):
    """How a line looks that begins a block."""

    place: int
    """of a word, from 0"""
    shape: str
    """the word with "0" for its digits and "a" for its letters; "" for any that is not indented, "{" for any object,
    LEVEL, "level" or "Level" for a level in such letters"""

    def is_of(self, line: str) -> bool:
        """Whether a line begins a block."""
        if line[:1].isspace() or self.shape == OBJECT:
            return line.startswith(OBJECT)
        words = words_of(line)
        seen = level if self.shape.upper() == LEVEL else shape
        return not self.shape or (len(words) > self.place and seen(words[self.place]) == self.shape)


def words_of(line: str) -> list[str]:
    """The first words of a line; "[   12.3]", as the kernel writes its times, is one."""
    return (f"[{line[1:].lstrip()}" if line.startswith("[ ") else line).split(maxsplit=PLACES)


def shape(word: str) -> str:
    """A word with "0" for each run of digits and "a" for each of letters."""
    for pattern, sign in SHAPES:
        word = pattern.sub(sign, word[:64])
    return word


def level(word: str) -> str:
    """ "LEVEL", "level" or "Level" for a word that is one, as [INFO] or warning: are, by its letters; "" for others."""
    found = FIRST_LETTERS.match(COLOURS.sub("", word[:64]))
    letters = found[1] if found else ""
    if letters.lower() not in LEVELS or letters.lower() in OF_TRACES:
        return ""
    return LEVEL.lower() if letters.islower() else LEVEL if letters.isupper() else LEVEL.title()


def found_beginning(head: Iterable[str]) -> Beginning:
    """How lines look that begin blocks: as most of a log's first lines do."""
    counts: Counter[Beginning] = Counter()
    levels: Counter[Beginning] = Counter()
    num_lines = num_objects = num_flush = 0
    for line in head:
        num_lines += bool(line.strip())
        num_objects += line.startswith(OBJECT) and line.rstrip().endswith("}")
        if not line[:1].isspace():
            words = words_of(line)[:PLACES]
            num_flush += bool(words)
            counts.update(Beginning(place, found) for place, found in enumerate(map(shape, words)) if "0" in found)
            levels.update(Beginning(place, found) for place, found in enumerate(map(level, words)) if found)
    most = max(counts.values(), default=0)
    if num_objects > max(most, LEAST_SHARE * num_lines):
        return Beginning(0, OBJECT)  # whose words differ with what they say
    has_time = any(TIME in one.shape and counts[one] >= LEAST_SHARE * num_lines for one in counts)
    by_level, with_level = max(levels.items(), key=lambda item: (item[1], -item[0].place), default=(None, 0))
    if by_level and not has_time and with_level >= LEAST_LEVELS * num_flush:
        before = max((counts[one] for one in counts if one.place < by_level.place), default=0)
        if with_level > before:  # else these are times that do not look like it, as 081109 203518
            return by_level
    if most < LEAST_SHARE * num_lines or not most:
        return Beginning(0, "")
    # Lines below may have a number in the same place, but hardly a time: of the frequent shapes that with most signs.
    often = [one for one in counts if counts[one] >= (OFTEN_OF_TIMES if TIME in one.shape else OFTEN) * most]
    return max(often, key=lambda one: ("a" not in one.shape, len(one.shape), -one.place))


def blocks(lines: Iterator[Line]) -> Iterator[Line]:
    """Blocks of lines, none lost; a BadRow ends one."""
    head = list(itertools.islice(lines, HEAD_LINES))
    beginning = found_beginning(line for line in head if isinstance(line, str))
    block, size = [], 0
    for line in itertools.chain(head, lines):
        is_bad = isinstance(line, BadRow)
        if block and (is_bad or size + len(line) > MOST_CHARS or beginning.is_of(line)):
            yield "".join(block)
            block, size = [], 0
        if is_bad:
            yield line
        else:
            block.append(line)
            size += len(line)
    if block:
        yield "".join(block)


class Records:
    """Makes records of the lines of all files of a run, one file after the other, and counts them.

    num_read: records so far. num_left_out: those of them beyond the first `most` of their template.
    """

    def __init__(self, are_blocks: bool, most: int, is_masked: bool):
        """`most`: records of a template that are kept, 0 for all. `is_masked`: whether values become "#"."""
        self.are_blocks, self.most, self.is_masked = are_blocks, most, is_masked
        self.num_read = self.num_left_out = self.num_templates = 0
        self._templates = LogTemplates()
        self._counts: Counter[int] = Counter()

    def of(self, lines: Iterator[Line]) -> Iterator[Line]:
        """The records to train on; a BadRow stays where it is."""
        batch, size = [], 0
        for record in blocks(lines) if self.are_blocks else lines:
            is_bad = isinstance(record, BadRow)
            if not is_bad:
                batch.append(record)
                size += len(record)
            if is_bad or size > BATCH_CHARS:
                yield from self._kept(batch)
                batch, size = [], 0
            if is_bad:
                yield record
        yield from self._kept(batch)

    def _kept(self, batch: list[str]) -> list[str]:
        self.num_read += len(batch)
        if self.most:
            kept = []
            for record, number in zip(batch, self._templates.add(batch).tolist(), strict=True):
                self._counts[number] += 1
                if self._counts[number] <= self.most:
                    kept.append(record)
            self.num_left_out += len(batch) - len(kept)
            self._bound()
            batch = kept
        return self._masked(batch) if self.is_masked else batch

    def _masked(self, batch: list[str]) -> list[str]:
        """The records with "#" for values; one that `mask` would cut stays as it is."""
        short = [i for i, record in enumerate(batch) if len(record) <= MOST_BYTES // 4]
        for i, text in zip(short, mask([batch[i].removesuffix("\n") for i in short]).texts, strict=True):
            batch[i] = text.decode("utf-8", "surrogatepass") + "\n" * batch[i].endswith("\n")
        return batch

    def _bound(self) -> None:
        templates = self._templates.templates
        self.num_templates = max(self.num_templates, len(templates))
        if sum(template.variants for template in templates) > MOST_VARIANTS:
            self._templates, self._counts = LogTemplates(), Counter()
