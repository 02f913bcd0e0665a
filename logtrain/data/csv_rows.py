"""Rows of a CSV or TSV file by RFC 4180: fields in quotes may hold separators, line breaks, and quotes written twice.

Its first record names the columns. All fields are text; an empty one is null. Separators other than the comma are found
in the first line, which may also be Excel's "sep=;".
"""

import csv
import itertools
import re
from collections.abc import Iterable, Iterator

from logtrain.data.lines import BadRow, lines, too_long, utf8_bytes

SEPARATORS = ",;\t|"
MAX_COLUMNS = 1 << 12
MAX_REREAD = (
    100  # records whose quotes never close, behind each of which the file is read again from its second line on
)


class Cell(str):
    """The text of a field, which may stand for a number."""


class _TooLong(Exception):
    pass


class _Lines:
    """The lines of a file for csv.reader, which asks for as many as a record takes. held: those of the record."""

    def __init__(self, texts: Iterable[str], max_bytes: int):
        self._lines, self._max_bytes = lines(texts, max_bytes), max_bytes
        self._returned: list[str] = []  # in reverse
        self.held: list[str] = []
        self._held_bytes = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._returned.pop() if self._returned else next(self._lines)
        if isinstance(line, BadRow):
            raise _TooLong
        self.held.append(line)
        self._held_bytes += utf8_bytes(line)
        if self._held_bytes > self._max_bytes:
            raise _TooLong
        return line

    def begin(self) -> None:
        """A record begins."""
        self.held, self._held_bytes = [], 0

    def give_back(self) -> None:
        """The record was its first line alone: the others are read again."""
        self._returned += reversed(self.held[1:])


def csv_rows(texts: Iterable[str], max_bytes: int, separator: str = "") -> Iterator[tuple[int, object]]:
    """(row, {column: text or None} or a BadRow), rows counted from 0 behind the names. `separator`: "" for the one that
    the first line has most of. Raises ValueError where the columns have no names of their own, or quotes go on and on.
    """
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))  # of the whole process, thus never less
    source = _Lines(with_line_ends(iter(texts)), max_bytes)
    separator = found_separator(source, separator)
    reader, row, rereads = csv.reader(source, delimiter=separator, strict=True), -1, 0
    names: list[str] = []
    while True:
        source.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except (csv.Error, _TooLong) as error:
            fields = too_long(max_bytes) if isinstance(error, _TooLong) else BadRow(f"not CSV ({error})")
            reader = csv.reader(source, delimiter=separator, strict=True)
            if len(source.held) > 1:
                source.give_back()
                rereads += 1
                if rereads > MAX_REREAD:
                    raise ValueError(f"not CSV: quotes that do not close, {rereads} times") from None
        if not fields:  # a blank line
            continue
        if row >= 0 or isinstance(fields, BadRow):
            yield max(row, 0), record(names, fields)
        else:
            names = checked_names(fields)
        row += 1


def with_line_ends(texts: Iterator[str]) -> Iterator[str]:
    """The texts; of a file that ends lines with "\\r" alone, as old Macs and Excel for Mac do, with "\\n" for it."""
    first = next(texts, "")
    is_old = "\r" in first[:-1] and "\n" not in first
    for text in itertools.chain([first], texts):
        yield text.replace("\r", "\n") if is_old else text


def record(names: list[str], fields: list[str] | BadRow) -> dict[str, Cell | None] | BadRow:
    """A record by the names of its columns."""
    if isinstance(fields, BadRow):
        return fields
    if len(fields) != len(names):
        return BadRow(f"{len(fields):,} fields, where the first line names {len(names):,} columns")
    return {name: Cell(field) if field else None for name, field in zip(names, fields, strict=True)}


def checked_names(fields: list[str]) -> list[str]:
    """The names of the columns; one without is called by its place. Raises ValueError where one stands twice, and for
    too many.
    """
    names = [field.strip() or f"column {place}" for place, field in enumerate(fields, 1)]
    if len(names) > MAX_COLUMNS:
        raise ValueError(f"{len(names):,} columns, more than {MAX_COLUMNS:,}")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"the first line names two columns {twice[:80]!r}")
    return names


def found_separator(source: _Lines, separator: str) -> str:
    """The separator, if none is given that which stands most often in the first line, outside of quotes."""
    first = next((line for line in source if line.strip()), None)
    source.begin()
    if first is None:
        return separator or ","
    if said := re.fullmatch(r"sep=(.)\r?\n?", first):
        return said[1]
    source.held = ["", first]
    source.give_back()
    source.begin()
    bare = re.sub(r'"[^"]*"', "", first)
    return separator or max(SEPARATORS, key=bare.count)
