"""Input files -> rows, as a stream: no file is ever held in memory, whatever its size.

A file's name says of which kind it is (KINDS, at the end) and how it is compressed (COMPRESSIONS):

    .json .jsonl .ndjson    an array, a value a line, or objects over several lines: how it begins says which
    .csv .tsv               a table of text, its first line the names of the columns
    .parquet .arrow ...     tables
    .txt .log .log.1 ...    text

A row's number counts from 0: elements of an array, lines of a JSON-lines file (blank ones too), records of a table,
documents of a text file. A row that cannot be read, or is too long, comes out as a BadRow in its place; a file that
cannot be read on raises a ValueError that names file and row.
"""

import contextlib
import hashlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from logtrain.core.units import size
from logtrain.core.untrusted import open_regular
from logtrain.data.archive import DAMAGE, Archive
from logtrain.data.compression import BLOCK_BYTES, COMPRESSIONS, blocks, unpacked
from logtrain.data.csv_rows import csv_rows
from logtrain.data.json_rows import json_rows
from logtrain.data.lines import MAX_ROW_MB, BadRow, decoded, lines
from logtrain.data.tables import arrow_rows, parquet_rows

MOST_UNPACKED, MOST_RATIO = 1 << 30, 200
"""A table that is compressed as a file is unpacked to the disk: to so many bytes, or so many times its size."""


class InputFile:
    """A file to read rows from.

    path: as it was given; of a member of an archive, archive/member. stem: its name without the endings. kind: of
    KINDS. num_bytes: its size; bytes_read: how far `rows` has come. max_row_bytes: of a row, of a line of text.
    records: what the lines of a text file become before they are put together. on_disk: it, or its archive.
    """

    def __init__(
        self,
        path: str | Path,
        max_row_mb: int = MAX_ROW_MB,
        archive: Archive | None = None,
        member: zipfile.ZipInfo | None = None,
    ):
        """`path`: of a file, or of `archive`, of which `member` is meant. Raises ValueError for a path that is no such
        file.
        """
        self.path = Path(path) / member.filename if member else Path(path)
        self.max_row_bytes, self._archive, self._member = max_row_mb << 20, archive, member
        on_disk = archive.path if archive else self.path
        if on_disk.is_dir():
            raise ValueError(f"{path}: a directory; give the files in it, as in --input {path}/*.json")
        if not on_disk.exists():
            raise ValueError(f"{path}: no such file")
        if not on_disk.is_file():
            raise ValueError(f"{path}: not a regular file; it is read twice, for its checksum and for its text")
        named = kind_of(self.path.name)
        if named is None:
            raise ValueError(f"{path}: not named {either(KIND_OF)} (nor one of these + {either(COMPRESSIONS)})")
        self.stem, self.kind, compression = named
        self.compression = COMPRESSIONS[compression] if compression else None
        self.on_disk, self._stat = on_disk, on_disk.stat()
        self.num_bytes = member.file_size if member else self._stat.st_size
        self.bytes_read = 0
        self.records: Callable[[Iterator[str | BadRow]], Iterator[str | BadRow]] = iter

    def again(self) -> Self:
        """The same file, to be read anew."""
        at = self._archive.path if self._archive else self.path
        return type(self)(at, self.max_row_bytes >> 20, self._archive, self._member)

    def rows(self, text_chars: int) -> Iterator[tuple[int, object]]:
        """(row, its JSON value or BadRow); of text, (row, str): whole lines, together at most `text_chars` characters.

        A line longer than that is a row of its own. Joined, the rows of a text file are the file, character for
        character, line ends too; only a byte order mark is left out. A byte that is not UTF-8 comes out as a lone
        surrogate (PEP 383), so that only its own row is bad. Raises ValueError where the file cannot be read on.
        """
        row = -1
        try:
            for row, value in self.kind.read(self, text_chars):
                yield row, value
        except (ValueError, OSError) as error:
            where, what = f"{self.path}: ", getattr(error, "strerror", None) or str(error)
            raise ValueError(f"{where}row {row + 1}: {what.removeprefix(where)}") from None
        except DAMAGE as error:
            raise ValueError(f"{self.path}: row {row + 1}: the archive is damaged ({error})") from None

    def has_changed(self) -> bool:
        """Whether, since this object was made, the file has been written to."""
        now = self.on_disk.stat()
        return (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns)

    def sha256(self, note: Callable[[int], None] = lambda _: None) -> str:
        """The SHA-256 of its bytes as they lie there, compressed or not, as hexadecimal digits. `note` is told how many
        bytes have been read since it was told last. Raises ValueError where they cannot be read, and for a file that
        begins with a block of zeros, as one does whose content never reached the disk.
        """
        try:
            with self.open() as stream:
                block, digest = stream.read(BLOCK_BYTES), hashlib.sha256()
                if block == bytes(BLOCK_BYTES):
                    raise ValueError(f"{self.path}: begins with {size(BLOCK_BYTES)} of zeros; restore it")
                while block:
                    digest.update(block)
                    note(len(block))
                    block = stream.read(BLOCK_BYTES)
        except (OSError, *DAMAGE) as error:
            raise ValueError(f"{self.path}: {getattr(error, 'strerror', None) or error}") from None
        return digest.hexdigest()

    def open(self) -> BinaryIO:
        """Its bytes as they lie there. Raises ValueError."""
        if self._archive is None or self._member is None:
            return open_regular(self.path)
        try:
            return self._archive.open(self._member)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def contents(self) -> Iterator[bytes]:
        """Its bytes, unpacked; what is read for them is counted in `bytes_read`."""
        with self.open() as stream:
            yield from unpacked(map(self._counted, blocks(stream, self.compression)), self.compression)

    def texts(self) -> Iterator[str]:
        """Its text, in pieces."""
        return decoded(self.contents())

    @contextlib.contextmanager
    def seekable(self) -> Iterator[str | BinaryIO]:
        """The path of its contents, or a temporary file of them where they are packed. Raises ValueError for more than
        may be unpacked to the disk.
        """
        if self._archive is None and self.compression is None:
            yield str(self.path)
            return
        most, size = max(MOST_UNPACKED, MOST_RATIO * self._stat.st_size), 0
        with tempfile.TemporaryFile() as stream:
            for block in self.contents():
                size += len(block)
                if size > min(most, shutil.disk_usage(tempfile.gettempdir()).free + size):
                    raise ValueError(
                        f"unpacks to more than {most:,} bytes, or than {tempfile.gettempdir()} has room for"
                    )
                stream.write(block)
            stream.seek(0)
            yield stream

    def _counted(self, block: bytes) -> bytes:
        self.bytes_read += len(block)
        return block


# Text -> rows


def text_rows(file: InputFile, text_chars: int) -> Iterator[tuple[int, str | BadRow]]:
    """Whole lines of a text file, as many as `text_chars` holds; a BadRow in the place of a line that is too long."""
    row, group, size = 0, [], 0
    for line in file.records(lines(file.texts(), file.max_row_bytes)):
        is_bad = isinstance(line, BadRow)
        if group and (is_bad or size + len(line) > text_chars):
            yield row, "".join(group)
            row, group, size = row + 1, [], 0
        if is_bad:
            yield row, line
            row += 1
        else:
            group.append(line)
            size += len(line)
    if group:
        yield row, "".join(group)


# The kinds of files


class Kind(NamedTuple):
    """A kind of files."""

    endings: tuple[str, ...]
    """what their names end with, in lower case"""
    described: str
    """the endings, for people"""
    read: Callable[[InputFile, int], Iterator[tuple[int, object]]]
    """what `InputFile.rows` yields, of a file and `text_chars`"""
    is_text: bool = False
    """whether rows are text, and not JSON values; such a file may be rotated: a number or a date follows its ending"""


KINDS = (
    Kind(
        ("json", "jsonl", "ndjson"),
        ".json (an array, or one object a line), .jsonl, .ndjson",
        lambda file, _: json_rows(file.texts(), file.max_row_bytes),
    ),
    Kind(("csv",), ".csv", lambda file, _: csv_rows(file.texts(), file.max_row_bytes)),
    Kind(("tsv",), ".tsv", lambda file, _: csv_rows(file.texts(), file.max_row_bytes, "\t")),
    Kind(("parquet",), ".parquet", lambda file, _: parquet_rows(file)),
    Kind(("arrow", "feather"), ".arrow, .feather", lambda file, _: arrow_rows(file)),
    Kind(("txt", "log"), ".txt, .log", text_rows, is_text=True),
)
KIND_OF = {ending: kind for kind in KINDS for ending in kind.endings}
FILE_NAME = re.compile(
    rf"(?P<stem>.+?)\.(?P<ending>{'|'.join(KIND_OF)})(?P<rotation>(?:[._-](?:\d[\d._:TZ-]*|old|bak))+)?"
    rf"(?:\.(?P<compression>{'|'.join(COMPRESSIONS)}))?",
    re.IGNORECASE,
)
SYSTEM_LOG = re.compile(
    rf"(?P<stem>syslog|messages|secure|dmesg|kern|maillog|cron|boot|console|(?:\w+_)?(?:access|error)_log)"
    rf"(?P<rotation>(?:[._-](?:\d[\d._:TZ-]*|old|bak))+)?(?:\.(?P<compression>{'|'.join(COMPRESSIONS)}))?"
)
"""Logs that have never had an ending."""


def kind_of(name: str) -> tuple[str, Kind, str] | None:
    """What a file's name says: its stem, its kind and the ending of its compression, "" for none. None: nothing."""
    found = FILE_NAME.fullmatch(name)
    kind = KIND_OF[found["ending"].lower()] if found else None
    if kind is None or found is None or (found["rotation"] and not kind.is_text):
        found, kind = SYSTEM_LOG.fullmatch(name), KIND_OF["log"]
    return (found["stem"], kind, (found["compression"] or "").lower()) if found else None


def either(endings: Iterable[str]) -> str:
    """Endings of names, as in a sentence: .txt or .log."""
    *most, last = (f".{ending}" for ending in endings)
    return f"{', '.join(most)} or {last}" if most else last


ENDINGS = f"{', '.join(kind.described for kind in KINDS)}, each also as {either(COMPRESSIONS)}, or in a .zip"
