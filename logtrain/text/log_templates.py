"""Lines of a log grouped by template: those that differ only in their values, or in a few words, are one group.

    Accepted password for root from 10.0.0.5 port 22        # Accepted password for <*> from <*> port <*>
    Accepted password for webmaster from 10.0.0.9 port 22

Lines that are equal but for their values are found first, all at once (masked.py): of 100,000 real lines some 20 to 600
different ones are left. These go through Drain (He et al. 2017, "Drain: An Online Log Parsing Approach with Fixed Depth
Tree"): among the lines with as many words, as serious, and with the same first two words, one joins the group that has
most words in common with it, if these are at least three quarters; where words differ the group has <*>. Values are no
words there, as any two would be equal.

On 100,000 lines each of HDFS, BGL, OpenSSH, Linux, Mac, Hadoop and Spark this takes 0.4 to 1.1 s of one core where
drain3 0.9.11 takes 0.6 to 6.3, and makes 16 templates of HDFS's 14 where that makes 164.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from logtrain.text.masked import mask
from logtrain.text.severity import severity

LEAST_EQUAL = 0.75  # share of words, of which a log's head is many: at 0.5 BGL's FATAL lines of three words were one
MOST_WORDS = 200  # of a text; what follows counts as one word
MOST_CHILDREN = 100  # first words that are told apart; the others are as one, as Drain has it
MOST_COMPARED = 32  # groups, so that lines without anything in common take no quadratic time
CHUNK = 1 << 24  # characters masked at once: some 400 MB of memory
VALUE, ANY = "#", "<*>"


@dataclass(eq=False)
class Template:
    """A group of lines."""

    number: int
    """Its place among the templates, from 0, in the order of their first lines."""
    words: list[str]
    """Words of the lines with their values masked as #, and <*> where they differ."""
    severity: int
    """How serious its lines are, PLAIN to FATAL (severity.py)."""
    count: int = 0
    """Number of lines."""
    variants: int = 0
    """Number of lines that are different with their values masked."""

    @property
    def text(self) -> str:
        """The template with <*> for whatever varies."""
        return " ".join(self.words).replace(VALUE, ANY)


@dataclass
class _Node:
    """A node of the tree: its children by their first word, and in a leaf its templates, the last used last."""

    children: dict[str, "_Node"] = field(default_factory=dict)
    templates: list[Template] = field(default_factory=list)

    def child(self, word: str) -> "_Node":
        if word not in self.children and len(self.children) >= MOST_CHILDREN:
            word = ANY
        return self.children.setdefault(word, _Node())


class LogTemplates:
    """Groups texts as they come. Which template a text gets depends on those before it, never on later ones; equal
    texts in equal order give equal numbers. templates: all so far. variants: each text that is different with its
    values masked, with the number of its template, in the order of their first ones.
    """

    def __init__(self):
        self.templates: list[Template] = []
        self.variants: dict[bytes, int] = {}
        self._numbers: dict[bytes, int] = {}  # of the variants, from 0
        self._roots: dict[tuple[int, int], _Node] = {}

    def add(self, texts: Sequence[str]) -> np.ndarray:
        """Group more texts, each a line or a document; -> int32, the number of each one's template."""
        found = self.add_variants(texts)
        return np.array(list(self.variants.values()), np.int32)[found]

    def add_variants(self, texts: Sequence[str]) -> np.ndarray:
        """The same; -> int32, the number of each one's variant."""
        found = np.empty(len(texts), np.int32)
        start = 0
        while start < len(texts):
            stop, size = start, 0
            while stop < len(texts) and size < CHUNK:
                size += len(texts[stop])
                stop += 1
            for index, masked in enumerate(mask(texts[start:stop]).texts, start):
                number = self._numbers.get(masked)
                if number is None:
                    number = self._numbers[masked] = len(self._numbers)
                    self.variants[masked] = self._place(masked)
                found[index] = number
            start = stop
        of_variant = list(self.variants.values())
        for number, count in zip(*np.unique(found, return_counts=True), strict=True):
            self.templates[of_variant[number]].count += int(count)
        return found

    def _place(self, masked: bytes) -> int:
        """The template of a masked text that is new: the nearest one, which it may widen, or one of its own."""
        words = masked.decode("utf-8", "replace").split(maxsplit=MOST_WORDS)
        rank = severity(masked)
        node = self._roots.setdefault((len(words), rank), _Node())
        names = [word for word in words[:6] if any(map(str.isalpha, word))]
        for word in [*names, "", ""][:2]:
            node = node.child(word)
        template = _nearest(words, node.templates[-MOST_COMPARED:])
        if template is None:
            template = Template(len(self.templates), words, rank)
            self.templates.append(template)
        else:
            template.words = [a if a == b else ANY for a, b in zip(template.words, words, strict=True)]
            node.templates.remove(template)
        node.templates.append(template)
        template.variants += 1
        return template.number


def _nearest(words: list[str], templates: list[Template]) -> Template | None:
    """The template that has most words in common with `words`, if they are enough; of equals the last used."""
    names = [word if any(map(str.isalpha, word)) else None for word in words]
    best, most = None, max(1, LEAST_EQUAL * (len(names) - names.count(None)))
    for template in templates:
        equal = sum(map(operator.eq, template.words, names))
        if equal >= most:
            best, most = template, equal
    return best
