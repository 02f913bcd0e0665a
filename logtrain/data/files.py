"""Input files -> rows, as a stream: no file is ever held in memory, whatever its size.

A file's name says of which kind it is (KINDS, at the end) and how it is compressed (COMPRESSIONS):

    .json .jsonl .ndjson    an array, or one value a line: the file's first character says which
    .txt .log .log.1 ...    text

A row's number counts from 0: elements of an array, lines of a JSON-lines file (blank ones too), documents of a text
file. A row that cannot be read, or is too long, comes out as a BadRow in its place; a file that cannot be read on
raises a ValueError that names file and row.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from logtrain.core.untrusted import DECODER, open_regular
from logtrain.data.json_array import array_elements, reason
from logtrain.data.lines import COMPRESSIONS, MAX_ROW_MB, BadRow, blocks, decoded, lines


class InputFile:
    """A file to read rows from.

    path: as it was given. stem: its name without the endings. kind: of KINDS. num_bytes: its size; bytes_read: how far
    `rows` has come. max_row_bytes: of a row, of a line of text.
    """

    def __init__(self, path: str | Path, max_row_mb: int = MAX_ROW_MB):
        """Raises ValueError for a path that is no such file."""
        self.path = Path(path)
        self.max_row_bytes = max_row_mb << 20
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
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.path}: row {row + 1}: {getattr(error, 'strerror', None) or error}") from None

    def has_changed(self) -> bool:
        """Whether, since this object was made, the file has been written to."""
        now = self.path.stat()
        return (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns)

    def text_blocks(self) -> Iterator[str]:
        """The file as `decoded` gives it, counted in `bytes_read`."""
        with open_regular(self.path) as stream:
            yield from decoded(map(self._counted, blocks(stream, self.compression)), self.compression)

    def _counted(self, block: bytes) -> bytes:
        self.bytes_read += len(block)
        return block


# Text -> rows


def text_rows(file: InputFile, text_chars: int) -> Iterator[tuple[int, str | BadRow]]:
    """Whole lines of a text file, as many as `text_chars` holds; a BadRow in the place of a line that is too long."""
    row, group, size = 0, [], 0
    for line in lines(file.text_blocks(), file.max_row_bytes):
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


def json_rows(file: InputFile, _: int) -> Iterator[tuple[int, object]]:
    """The elements of a file's array, or the values of its lines."""
    texts, blanks, block = file.text_blocks(), [], ""
    for block in texts:
        if block.strip():
            break
        blanks.append(block)
        if sum(map(len, blanks)) > file.max_row_bytes:
            raise ValueError(f"begins with more than {file.max_row_bytes:,} blanks")
    texts = itertools.chain(blanks, [block], texts)
    if block.lstrip().startswith("["):
        return enumerate(array_elements(texts, file.max_row_bytes))
    return json_lines(texts, file.max_row_bytes)


def json_lines(texts: Iterable[str], max_bytes: int) -> Iterator[tuple[int, object]]:
    """One value a line; a BadRow in the place of a line that holds none, but for blank ones."""
    for row, line in enumerate(lines(texts, max_bytes)):
        if isinstance(line, BadRow):
            yield row, line
        elif not line.isspace():
            yield row, json_value(line)


def json_value(text: str) -> object:
    """The value that a text holds, or a BadRow."""
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return BadRow(f"not JSON on one line ({reason(error)})")


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
