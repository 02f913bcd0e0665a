"""Bytes -> text -> lines, as a stream: whatever a file holds, or unpacks to, no more than a row of it is in memory.

Legend: a block is some bytes or some text of a file; where it ends means nothing.
"""

import codecs
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Protocol

import zstandard

BLOCK_BYTES = 1 << 20
PACKED_BLOCK_BYTES = 1 << 16  # logs compress 20 times and more, so this too gives blocks of about a megabyte
ZSTD_BYTES = 1 << 9  # at a time: 4 bytes unpack to 128 KiB at most, so these to 16 MiB
ZSTD_WINDOW = 1 << 27  # bytes; what the zstd program, too, takes without being told to
MAX_ROW_MB = 64
SKIPPED_ROWS = 16  # lines of the most bytes; what has none ending after so many is no file of lines


class BadRow(Exception):
    """A row that is no document, and why."""

    def __init__(self, reason: str, row: int = -1):
        super().__init__(reason if len(reason) <= 500 else f"{reason[:500]}...")  # it may quote a name of megabytes
        self.row = row


def blocks(stream: BinaryIO, compression: "Callable[[], Unpacker] | None") -> Iterator[bytes]:
    """The bytes of a file as they come. `compression`: of COMPRESSIONS, None for a plain file."""
    return iter(lambda: stream.read(PACKED_BLOCK_BYTES if compression else BLOCK_BYTES), b"")


class Unpacker(Protocol):
    """Decompresses one member of a file: a stream that may be followed by another."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def unpack(self, data: bytes) -> Iterator[bytes]: ...


class Gzip:
    """A member of a .gz file."""

    def __init__(self):
        self._member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data

    def unpack(self, data: bytes) -> Iterator[bytes]:
        while True:
            block = self._member.decompress(data, BLOCK_BYTES)
            yield block
            data = self._member.unconsumed_tail
            if self._member.eof or (not data and len(block) < BLOCK_BYTES):  # some may be left when all is taken in
                return


class Zstandard:
    """A frame of a .zst file."""

    def __init__(self):
        self._frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
        self.unused_data = b""

    @property
    def eof(self) -> bool:
        return self._frame.eof

    def unpack(self, data: bytes) -> Iterator[bytes]:
        block, size = [], 0
        for start in range(0, len(data), ZSTD_BYTES):
            block.append(self._frame.decompress(data[start : start + ZSTD_BYTES]))
            size += len(block[-1])
            if self._frame.eof:
                self.unused_data = self._frame.unused_data + data[start + ZSTD_BYTES :]
                break
            if size >= BLOCK_BYTES:
                yield b"".join(block)
                block, size = [], 0
        yield b"".join(block)


COMPRESSIONS: dict[str, Callable[[], Unpacker]] = {"gz": Gzip, "zst": Zstandard}
"""By the ending of a file's name."""


def unpacked(blocks: Iterable[bytes], compression: Callable[[], Unpacker]) -> Iterator[bytes]:
    """The contents of a compressed file of one member or several, in blocks of a bounded size. Raises ValueError where
    it is cut short, which zstandard's own reader does not notice, or cannot be unpacked.
    """
    member = compression()
    try:
        for block in blocks:
            while block:
                if member.eof:
                    member = compression()
                yield from member.unpack(block)
                block = member.unused_data
    except (zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"cannot be unpacked ({error})") from None
    if not member.eof:
        raise ValueError("the compressed file is cut short")


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


def lines(blocks: Iterable[str], max_bytes: int) -> Iterator[str | BadRow]:
    """Lines with their "\\n", which alone ends one: a "\\r" or a form feed inside a log line is part of the line. A
    BadRow in the place of a line of more bytes than `max_bytes`. Raises ValueError where a line goes on and on.
    """
    held: list[str] = []  # the beginning of a line; nothing of one that is too long
    held_bytes = 0
    for block in blocks:
        *whole, rest = block.split("\n")
        for line in whole:
            if held:
                held_bytes += utf8_bytes(line)
                held += (line, "\n")
                yield too_long(max_bytes) if held_bytes > max_bytes else "".join(held)
                held, held_bytes = [], 0
            else:
                yield too_long(max_bytes) if utf8_bytes(line) > max_bytes else line + "\n"
        if not rest:
            continue
        held_bytes += utf8_bytes(rest)
        if held_bytes > SKIPPED_ROWS * max_bytes:
            raise ValueError(f"no line end in {SKIPPED_ROWS * max_bytes:,} bytes")
        held.append(rest)
        if held_bytes > max_bytes:
            held = [""]
    if held:
        yield too_long(max_bytes) if held_bytes > max_bytes else "".join(held)


def utf8_bytes(text: str) -> int:
    """The bytes that a text takes in a file."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def too_long(max_bytes: int) -> BadRow:
    """What stands in the place of a row of more bytes than it may have."""
    return BadRow(f"longer than {max_bytes:,} bytes; if it is meant, give a greater --max_row_mb")
