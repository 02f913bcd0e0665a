"""Input files -> rows, as a stream: no file is ever held in memory, whatever its size.

Kinds of file, each also as .gz or .zst:

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

import zstandard

BLOCK_BYTES = 1 << 20
PACKED_BLOCK_BYTES = 1 << 16  # logs compress 20 times and more, so this too gives blocks of about a megabyte
MAX_ROW_CHARS = 1 << 24  # a longer row is damage (a quote left open) or a mistake, and would only fill the memory
FILE_NAME = re.compile(r"(.+?)\.(json|jsonl|ndjson|(?:txt|log)(?:\.\d+)?)(?:\.(gz|zst))?", re.IGNORECASE)
UNPACKERS = {
    "gz": lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16),
    "zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
}


class BadRow(Exception):
    """A row that is no document, and why."""

    def __init__(self, reason: str, row: int = -1):
        super().__init__(reason)
        self.row = row


class InputFile:
    """stem: its name without the endings. bytes_read: how far `rows` has come, of num_bytes."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"{path}: a directory; give the files in it, as in --input {path}/*.json")
        if not self.path.exists():
            raise ValueError(f"{path}: no such file")
        if not self.path.is_file():
            raise ValueError(f"{path}: not a regular file; it is read twice, for its checksum and for its text")
        name = FILE_NAME.fullmatch(self.path.name)
        if name is None:
            raise ValueError(f"{path}: not named .json, .jsonl, .ndjson, .txt or .log (nor one of these + .gz or .zst)")
        self.stem, kind, packed = name.groups()
        self.is_json = "js" in kind.lower()
        self._stat = self.path.stat()
        self.num_bytes = self._stat.st_size
        self.bytes_read = 0
        self._packed = packed.lower() if packed else None

    def rows(self, text_chars: int) -> Iterator[tuple[int, object]]:
        """(row, its JSON value or BadRow); of text, (row, str): whole lines, together at most `text_chars` characters.

        A line longer than that is a row of its own. Joined, the rows of a text file are the file, character for
        character, line ends too; only a byte order mark is left out. A byte that is not UTF-8 comes out as a lone
        surrogate (PEP 383), so that only its own row is bad.
        """
        row = -1
        try:
            blocks = self._blocks()
            for row, value in json_rows(blocks) if self.is_json else text_rows(blocks, text_chars):
                yield row, value
        except (ValueError, OSError, zlib.error, zstandard.ZstdError) as error:
            raise ValueError(f"{self.path}: row {row + 1}: {error}") from None

    def has_changed(self) -> bool:
        """Whether, since this object was made, the file has been written to."""
        now = self.path.stat()
        return (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns)

    def _blocks(self) -> Iterator[str]:
        with open(self.path, "rb") as stream:
            yield from decoded(iter(lambda: self._read(stream), b""), self._packed)

    def _read(self, stream) -> bytes:
        data = stream.read(PACKED_BLOCK_BYTES if self._packed else BLOCK_BYTES)
        self.bytes_read += len(data)
        return data


def decoded(data: Iterable[bytes], packed: str | None) -> Iterator[str]:
    """Text of a file's blocks, without a byte order mark; `packed`: gz or zst. A byte that is not UTF-8 is a lone
    surrogate (PEP 383).
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    blocks = (decoder.decode(block) for block in (unpack(data, UNPACKERS[packed]) if packed else data))
    head = next((block for block in blocks if block), "")
    if head[:2] in ("\udcff\udcfe", "\udcfe\udcff"):
        raise ValueError("UTF-16, not UTF-8; convert the file with iconv -f UTF-16 -t UTF-8")
    yield head.removeprefix("\ufeff")
    yield from blocks
    yield decoder.decode(b"", final=True)


def unpack(data: Iterable[bytes], unpacker: Callable) -> Iterator[bytes]:
    """Decompresses a stream of one member or several; notices, as zstandard's reader does not, that it is cut short."""
    member = unpacker()
    for block in data:
        while block:
            if member.eof:
                member = unpacker()
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


def text_rows(blocks: Iterable[str], text_chars: int) -> Iterator[tuple[int, str]]:
    row, group, size = 0, [], 0
    for line in lines(blocks):
        if group and size + len(line) > text_chars:
            yield row, "".join(group)
            row, group, size = row + 1, [], 0
        group.append(line)
        size += len(line)
    if group:
        yield row, "".join(group)


def json_rows(blocks: Iterator[str]) -> Iterator[tuple[int, object]]:
    head = ""
    while not head.lstrip() and (block := next(blocks, None)) is not None:
        head += block
    blocks = itertools.chain([head], blocks)
    return enumerate(array_elements(blocks)) if head.lstrip().startswith("[") else json_lines(blocks)


def json_lines(blocks: Iterable[str]) -> Iterator[tuple[int, object]]:
    for row, line in enumerate(lines(blocks)):
        if line.isspace():
            continue
        try:
            yield row, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield row, BadRow(f"not JSON on one line ({reason(error)})")


def array_elements(blocks: Iterator[str]) -> Iterator[object]:
    """The elements of one JSON array, decoded one at a time: 240 MB/s, with an element and a block or two in memory."""
    window = _Window(blocks)
    mark = window.take()
    assert mark == "["
    if window.next() == "]":
        mark = window.take()
    while mark != "]":
        yield window.take_value()
        mark = window.take()
        if mark not in ("]", ","):
            raise ValueError(f"not JSON: {mark!r} where , or ] belongs" if mark else "the array is cut short")
    if window.next():
        raise ValueError(f"not JSON: {window.next()!r} after the end of the array")


def reason(error: Exception, start: int = 0) -> str:
    """`start`: where in the decoded text the row began."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, character {error.pos - start} of the row"
    return str(error)


class _Window:
    """The part of the text in hand, and a position in it. It at least doubles when it grows, so retries stay linear."""

    MARK = re.compile(r"[ \t\r\n]*(.?)[ \t\r\n]*", re.DOTALL)

    def __init__(self, blocks: Iterator[str]):
        self._blocks, self._text, self._at = blocks, "", 0
        self._decode = json.JSONDecoder().raw_decode

    def next(self) -> str:
        """The character at the position; "" at the end of the file."""
        return self._text[self._at : self._at + 1]

    def take(self) -> str:
        """Moves past a character and the space around it; "" at the end of the file."""
        while True:
            match = self.MARK.match(self._text, self._at)
            if match.end() < len(self._text) or not self._grow():  # the space may go on beyond the window
                self._at = match.end()
                return match[1]

    def take_value(self) -> object:
        """Moves past a JSON value, which begins right at the position."""
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except (ValueError, RecursionError) as error:  # not JSON, or not yet
                if len(self._text) - self._at > MAX_ROW_CHARS:
                    raise ValueError(
                        f"not JSON, or longer than {MAX_ROW_CHARS:,} characters ({reason(error, self._at)})"
                    ) from None
                if not self._grow():
                    raise ValueError(f"cut short, or not JSON ({reason(error, self._at)})") from None
            else:
                # Near the window's end a number may be cut: 1 is what "1e+" begins with, so look three characters on.
                if end + 3 <= len(self._text) or not self._grow():
                    self._at = end
                    return value

    def _grow(self) -> bool:
        """Reads on, and forgets what lies before the position. False, and nothing changes, at the end of the file."""
        rest, grown = self._text[self._at :], []
        while sum(map(len, grown)) <= len(rest) and (block := next(self._blocks, None)) is not None:
            grown.append(block)
        if not any(grown):
            return False
        self._text, self._at = "".join([rest, *grown]), 0
        return True
