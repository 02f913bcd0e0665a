"""Input files -> rows, as a stream: no file is ever held in memory, whatever its size.

A file's name says of which kind it is (KINDS, at the end) and how it is compressed (COMPRESSIONS):

    .json .jsonl .ndjson    an array, or one value a line: the file's first character says which
    .txt .log .log.1 ...    text

A row's number counts from 0: elements of an array, lines of a JSON-lines file (blank ones too), documents of a text
file. A row that cannot be read comes out as a BadRow in its place; a file that cannot be read on raises a ValueError
that names file and row.
"""

import codecs
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import zstandard

from logtrain.data.json_array import array_elements, reason

BLOCK_BYTES = 1 << 20
PACKED_BLOCK_BYTES = 1 << 16  # logs compress 20 times and more, so this too gives blocks of about a megabyte
MAX_ROW_CHARS = 1 << 24  # a longer row is damage (a quote left open) or a mistake, and would only fill the memory


class BadRow(Exception):
    """A row that is no document, and why."""

    def __init__(self, reason: str, row: int = -1):
        super().__init__(reason)
        self.row = row


class InputFile:
    """A file to read rows from. Raises ValueError for a path that is no such file.

    path: as it was given. stem: its name without the endings. kind: of KINDS. num_bytes: its size; bytes_read: how far
    `rows` has come.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"{path}: a directory; give the files in it, as in --input {path}/*.json")
        if not self.path.exists():
            raise ValueError(f"{path}: no such file")
        if not self.path.is_file():
            raise ValueError(f"{path}: not a regular file; it is read twice, for its checksum and for its text")
        name = FILE_NAME.fullmatch(self.path.name)
        kind = KIND_OF[name["ending"].lower()] if name else None
        if name is None or kind is None or (name["rotation"] and not kind.is_text):
            raise ValueError(f"{path}: not named {either(KIND_OF)} (nor one of these + {either(COMPRESSIONS)})")
        self.stem: str = name["stem"]
        self.kind = kind
        self.compression = COMPRESSIONS[name["compression"].lower()] if name["compression"] else None
        self._stat = self.path.stat()
        self.num_bytes = self._stat.st_size
        self.bytes_read = 0

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
        except (ValueError, OSError, zlib.error, zstandard.ZstdError) as error:
            raise ValueError(f"{self.path}: row {row + 1}: {error}") from None

    def has_changed(self) -> bool:
        """Whether, since this object was made, the file has been written to."""
        now = self.path.stat()
        return (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns)

    def text_blocks(self) -> Iterator[str]:
        """The file as `decoded` gives it, counted in `bytes_read`."""
        with open(self.path, "rb") as stream:
            yield from decoded(self._blocks(stream), self.compression)

    def _blocks(self, stream: BinaryIO) -> Iterator[bytes]:
        while block := stream.read(PACKED_BLOCK_BYTES if self.compression else BLOCK_BYTES):
            self.bytes_read += len(block)
            yield block


# Bytes -> text


class Unpacker(Protocol):
    """Decompresses one member of a file: a stream that may be followed by another."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


COMPRESSIONS: dict[str, Callable[[], Unpacker]] = {
    "gz": lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16),
    "zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
}
"""By the ending of a file's name."""


def decoded(blocks: Iterable[bytes], compression: Callable[[], Unpacker] | None) -> Iterator[str]:
    """The text of a file's blocks, without a byte order mark. A byte that is not UTF-8 is a lone surrogate (PEP 383).
    `compression`: of COMPRESSIONS. Raises ValueError for UTF-16, and where `unpacked` does.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    texts = map(decoder.decode, unpacked(blocks, compression) if compression else blocks)
    head = next(filter(None, texts), "")
    if head[:2] in ("\udcff\udcfe", "\udcfe\udcff"):
        raise ValueError("UTF-16, not UTF-8; convert the file with iconv -f UTF-16 -t UTF-8")
    yield head.removeprefix("\ufeff")
    yield from texts
    yield decoder.decode(b"", final=True)


def unpacked(blocks: Iterable[bytes], compression: Callable[[], Unpacker]) -> Iterator[bytes]:
    """The contents of a compressed file of one member or several. Raises ValueError where it is cut short, which
    zstandard's own reader does not notice.
    """
    member = compression()
    for block in blocks:
        while block:
            if member.eof:
                member = compression()
            yield member.decompress(block)
            block = member.unused_data
    if not member.eof:
        raise ValueError("the compressed file is cut short")


def lines(blocks: Iterable[str]) -> Iterator[str]:
    """Lines with their "\\n", which alone ends one: a "\\r" or a form feed inside a log line is part of the line."""
    rest = ""
    for block in blocks:
        *whole, rest = (rest + block).split("\n")
        if len(rest) > MAX_ROW_CHARS:
            raise ValueError(f"no line end in {MAX_ROW_CHARS:,} characters")
        for line in whole:
            yield line + "\n"
    if rest:
        yield rest


# Text -> rows


def text_rows(file: InputFile, text_chars: int) -> Iterator[tuple[int, str]]:
    """Whole lines of a text file, as many as `text_chars` holds."""
    row, group, size = 0, [], 0
    for line in lines(file.text_blocks()):
        if group and size + len(line) > text_chars:
            yield row, "".join(group)
            row, group, size = row + 1, [], 0
        group.append(line)
        size += len(line)
    if group:
        yield row, "".join(group)


def json_rows(file: InputFile, _: int) -> Iterator[tuple[int, object]]:
    """The elements of a file's array, or the values of its lines."""
    blocks, head = file.text_blocks(), ""
    while not head.lstrip() and (block := next(blocks, None)) is not None:
        head += block
    blocks = itertools.chain([head], blocks)
    return enumerate(array_elements(blocks, MAX_ROW_CHARS)) if head.lstrip().startswith("[") else json_lines(blocks)


def json_lines(blocks: Iterable[str]) -> Iterator[tuple[int, object]]:
    """One value a line; a BadRow in the place of a line that holds none, but for blank ones."""
    for row, line in enumerate(lines(blocks)):
        if line.isspace():
            continue
        try:
            yield row, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield row, BadRow(f"not JSON on one line ({reason(error)})")


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
    """whether rows are text, and not JSON values; such a file may be rotated, its name going on with a number"""


KINDS = (
    Kind(("json", "jsonl", "ndjson"), ".json (an array, or one object a line), .jsonl, .ndjson", json_rows),
    Kind(("txt", "log"), ".txt, .log", text_rows, is_text=True),
)
KIND_OF = {ending: kind for kind in KINDS for ending in kind.endings}
FILE_NAME = re.compile(
    rf"(?P<stem>.+?)\.(?P<ending>{'|'.join(KIND_OF)})(?P<rotation>\.\d+)?"
    rf"(?:\.(?P<compression>{'|'.join(COMPRESSIONS)}))?",
    re.IGNORECASE,
)


def either(endings: Iterable[str]) -> str:
    """Endings of names, as in a sentence: .txt or .log."""
    *most, last = (f".{ending}" for ending in endings)
    return f"{', '.join(most)} or {last}" if most else last


ENDINGS = f"{', '.join(kind.described for kind in KINDS)}, each also as {either(COMPRESSIONS)}"
