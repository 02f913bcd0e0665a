"""Which lines of a log say most, in order: what is serious and rare first, what is like many others last.

A line is rare if its template is (text/log_templates.py), or if it has a word, or a combination of words, where its
template has few different ones, that hardly any other line has there ("failed" for "succeeded"; but not one of 49 names
of users), or a status code that hardly any has ("exit code 137" among many 0).
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from logtrain.text.log_templates import ANY, MOST_WORDS, LogTemplates, Template
from logtrain.text.severity import ERROR, WARNING

RARE = 3  # lines
GOLDEN = (math.sqrt(5) - 1) / 2
MOST_CLOSED = 8  # different words at a place of a template; with more, any word may come there
MOST_VARIANTS = 20_000  # that are looked at word by word
MOST_BYTES = 2000  # of a line, whose words are looked at
LENGTH_OF_HEAD = 60  # characters that a line takes beside its message: number, mark of a gap
WORD = re.compile(rb"[A-Za-z]{2,}")
NAMES_CODE = re.compile(r"(?i)\b(?:status|code|exit\w*|rc|ret|errno|signal|http)\b")
CODE = re.compile(
    r"(?i)\b(?:status|code|exit(?:ed)?|rc|ret(?:urn(?:ed)?)?|errno|signal)(?: code| status| with)*\W{0,3}(-?\d{1,5})\b"
    r"|http/[\d.]+\"? +(\d{3})\b"
)


@dataclass(frozen=True)
class Notable:
    """What is known of each of L lines."""

    templates: list[Template]
    template_L: np.ndarray
    """int32: the number of its template"""
    severity_L: np.ndarray
    """int8: PLAIN to FATAL, a code that stands out considered"""
    seen_L: np.ndarray
    """int32: how many lines are like it, itself included"""
    novelty_L: np.ndarray
    """float32: how unusual its words are: the mean of the logarithm of how many lines there are to one with the word"""
    length_L: np.ndarray
    """int64: its characters"""

    def spread(self) -> np.ndarray:
        """All lines, int64 indices, so that the first ones are of every template, and from everywhere in the log.

        The j-th line of a template of n has its turn at n times the fraction of j times the golden ratio, which
        spreads any number of first ones evenly (Knuth, The Art of Computer Programming 3, 6.4); serious ones four times
        as soon.
        """
        by_template = np.argsort(self.template_L, kind="stable")
        count_L = np.bincount(self.template_L)[self.template_L]
        starts_T = np.cumsum(np.bincount(self.template_L)) - np.bincount(self.template_L)
        nth_L = np.empty(len(count_L), np.int64)
        nth_L[by_template] = np.arange(len(count_L)) - starts_T[self.template_L[by_template]]
        turn_L = nth_L * GOLDEN % 1 * count_L
        turn_L[self.severity_L >= ERROR] /= 4
        return np.argsort(turn_L, kind="stable")

    def rare(self, least: int, most: int) -> np.ndarray:
        """The rare lines whose severity is in [least, most]: int64 indices. First those that say most for their length:
        where there are more than there is room for, a line of common words, or a very long one, gives way.
        """
        found = np.flatnonzero((self.seen_L <= RARE) & (self.severity_L >= least) & (self.severity_L <= most))
        worth = self.novelty_L[found] / np.sqrt(self.length_L[found] + LENGTH_OF_HEAD)
        return found[np.lexsort((found, -worth))]


def notable(lines: Sequence[str]) -> Notable:
    """Look at all lines of a log."""
    templates = LogTemplates()
    variant_L = templates.add_variants(lines)
    template_V = np.array(list(templates.variants.values()), np.int32)
    template_L = template_V[variant_L]
    count_V = np.bincount(variant_L, minlength=len(template_V))
    severity_L = np.array([template.severity for template in templates.templates], np.int8)[template_L]
    seen_L = _seen(templates, template_V, count_V)[variant_L]
    for template in templates.templates:
        if NAMES_CODE.search(template.text):
            _look_at_codes(lines, np.flatnonzero(template_L == template.number), seen_L, severity_L)
    novelty_L = _novelty(templates, count_V)[variant_L]
    length_L = np.fromiter(map(len, lines), np.int64, len(lines))
    return Notable(templates.templates, template_L, severity_L, seen_L, novelty_L, length_L)


def _novelty(templates: LogTemplates, count_V: np.ndarray) -> np.ndarray:
    """How unusual the words of each variant are: float32 [V]."""
    words_V = [set(WORD.findall(masked[:MOST_BYTES])) for masked in templates.variants]
    lines_with: Counter[bytes] = Counter()
    for words, count in zip(words_V, count_V.tolist(), strict=True):
        for word in words:
            lines_with[word] += count
    total = float(count_V.sum())
    rarity = {word: math.log(total / count) for word, count in lines_with.items()}
    return np.array([sum(map(rarity.__getitem__, words)) / max(len(words), 1) for words in words_V], np.float32)


def _seen(templates: LogTemplates, template_V: np.ndarray, count_V: np.ndarray) -> np.ndarray:
    """How many lines are like those of each variant: int32 [V]."""
    seen_V = np.array([template.count for template in templates.templates], np.int32)[template_V]
    words_V = []
    at_place: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)  # (template, place) -> lines by their word
    for masked, number in list(templates.variants.items())[:MOST_VARIANTS]:
        template = templates.templates[number]
        words = masked.decode("utf-8", "replace").split(maxsplit=MOST_WORDS) if template.variants > 1 else []
        varying = [(at, words[at]) for at in range(len(words)) if template.words[at] == ANY]
        for at, word in varying:
            at_place[number, at][word] += int(count_V[len(words_V)])
        words_V.append(varying)
    for variant, varying in enumerate(words_V):
        places = [(at_place[int(template_V[variant]), at], word) for at, word in varying]
        counts = [counts[word] for counts, word in places if len(counts) <= MOST_CLOSED]
        if len(counts) == len(places):  # all few: so are their combinations
            counts.append(int(count_V[variant]))
        seen_V[variant] = min([int(seen_V[variant]), *counts])
    return seen_V


def _look_at_codes(lines: Sequence[str], some: np.ndarray, seen_L: np.ndarray, severity_L: np.ndarray) -> None:
    """Of the lines of one template, count those with a status code that few have as rare, and as serious where it is
    one of failure among others of success.
    """
    codes = [(found[1] or found[2]) if (found := CODE.search(lines[int(index)])) else None for index in some]
    counts = Counter(codes)
    if not 1 < len(counts) <= len(codes) // (2 * RARE):
        return
    usual = counts.most_common(1)[0][0]
    for index, code in zip(some, codes, strict=True):
        if counts[code] <= RARE and code is not None:
            seen_L[index] = min(seen_L[index], counts[code])
            severity_L[index] = max(severity_L[index], ERROR if _is_failure(code, usual) else WARNING)


def _is_failure(code: str, usual: str | None) -> bool:
    """Whether a code tells of a failure where `usual` is the usual one: not 0 instead of 0, or 5xx of HTTP."""
    return (usual == "0" and code != "0") or (len(code) == 3 and code[0] == "5" and (usual or "")[:1] in "1234")
