"""The rows of all input files, in chunks of what a worker tokenises at a time.

Legend: I items (texts, or the turns of conversations) of a chunk.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from logtrain.data.config import PrepareConfig, is_chat_format, is_text_format
from logtrain.data.conversations import Conversation, conversations
from logtrain.data.documents import Document, documents
from logtrain.data.files import InputFile
from logtrain.data.format_found import reading_of
from logtrain.data.lines import BadRow
from logtrain.data.records import Records
from logtrain.data.shards import DOCUMENT
from logtrain.text.chat_template import Turn

MAX_DOMAINS = 1 << 16  # the manifest and the report name each; more are no kinds of rows, but names of single ones
CHUNK_CHARS = 1 << 18  # about 80 ms of work, and a few MB while it is worked on
Item = str | tuple[Turn, ...]


class BadRowFound(NamedTuple):
    """A row that was left out, and why."""

    source: int
    """index of its file"""
    row: int
    reason: str


class RowsRead(NamedTuple):
    """Where the items of a chunk come from, and what was found between them."""

    records_I: np.ndarray
    """DOCUMENT: row, source and domain are filled in"""
    bad_rows: list[BadRowFound]
    num_chars: int
    """characters of the items"""
    is_held_I: np.ndarray
    """bool: whether the item's group is held out"""


def records_of(config: PrepareConfig) -> Records:
    """What makes records of the lines of all text files."""
    return Records(config.records == "block", config.max_per_template, config.mask_values)


def rows_of(config: PrepareConfig, file: InputFile, records: Records) -> Iterator[Document | Conversation | BadRow]:
    """The rows of a file as what `config.format` makes of them. `records`: the same for all files, in order."""
    file.records = records.of
    reading = reading_of(config)
    if is_chat_format(config.format):
        return conversations(file, config.format, reading)
    assert is_text_format(config.format)
    return documents(file, config.format, config.text_chars, reading)


@dataclass
class _Chunk:
    """A chunk that is being filled."""

    items: list[Item] = field(default_factory=list)
    came_from: list[tuple[int, int, int, bool]] = field(default_factory=list)  # row, source, domain, is held
    bad_rows: list[BadRowFound] = field(default_factory=list)
    num_chars: int = 0

    def rows_read(self) -> RowsRead:
        """Where its items come from."""
        records_I = np.zeros(len(self.items), DOCUMENT)
        columns_I = np.array(self.came_from, np.int64).reshape(-1, 4).T
        records_I["row"], records_I["source"], records_I["domain"] = columns_I[:3]
        return RowsRead(records_I, self.bad_rows, self.num_chars, columns_I[3].astype(bool))


class Chunks:
    """Iterates over (RowsRead, items). domains: those that have come so far, each with its number; num_good: rows that
    are not bad; records: those of text files. `held_groups`: those of the column that the split goes by which are held
    out.
    """

    def __init__(self, config: PrepareConfig, files: list[InputFile], held_groups: Iterable[str] = ()):
        self.config, self.files, self.held_groups = config, files, frozenset(held_groups)
        self.domains: dict[str, int] = {}
        self.num_good = 0
        self.records = records_of(config)

    def __iter__(self) -> Iterator[tuple[RowsRead, list[Item]]]:
        chunk, num_bad, most_bad = _Chunk(), 0, self.config.most_bad_rows
        if self.config.is_chat:
            most_bad = sys.maxsize
        for source, file in enumerate(self.files):
            for row in rows_of(self.config, file, self.records):
                if isinstance(row, BadRow):
                    num_bad += 1
                    chunk.bad_rows.append(BadRowFound(source, row.row, str(row)))
                    chunk.num_chars += len(str(row))
                elif num_bad <= most_bad:
                    self.num_good += 1
                    item, num_chars = content(row)
                    chunk.items.append(item)
                    chunk.came_from.append((row.row, source, self.number_of(row.domain), row.group in self.held_groups))
                    chunk.num_chars += num_chars
                else:  # the run has failed, and only reads on to say how many bad rows there are
                    self.num_good += 1
                if chunk.num_chars >= CHUNK_CHARS:
                    yield chunk.rows_read(), chunk.items
                    chunk = _Chunk()
        if chunk.num_chars:
            yield chunk.rows_read(), chunk.items

    def number_of(self, domain: str) -> int:
        """The number of a domain, which it keeps. Raises ValueError for too many."""
        number = self.domains.setdefault(domain, len(self.domains))
        if number >= MAX_DOMAINS:
            raise ValueError(f"more than {MAX_DOMAINS:,} domains; leave them out with --ignore_columns domain")
        return number


def content(row: Document | Conversation) -> tuple[Item, int]:
    """What an encoder is given of a row, and how many characters that is."""
    if isinstance(row, Document):
        return row.text, len(row.text)
    return row.turns, sum(len(turn.content) for turn in row.turns)
