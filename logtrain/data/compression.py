"""Compressed files -> bytes, as a stream, in blocks of a bounded size, however much a file unpacks to."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Protocol

import zstandard

BLOCK_BYTES = 1 << 20
PACKED_BLOCK_BYTES = 1 << 16  # logs compress 20 times and more, so this too gives blocks of about a megabyte
ZSTD_BYTES = 1 << 9  # at a time: 4 bytes unpack to 128 KiB at most, so these to 16 MiB
ZSTD_WINDOW = 1 << 27  # bytes; what the zstd program, too, takes without being told to
XZ_MEMORY = 1 << 27  # bytes; xz -9 takes 65 MiB


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


class Bounded:
    """A stream of a .xz or .bz2 file, whose decompressors in the standard library have the same interface."""

    def __init__(self, member: lzma.LZMADecompressor | bz2.BZ2Decompressor):
        self._member = member

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data

    def unpack(self, data: bytes) -> Iterator[bytes]:
        yield self._member.decompress(data, BLOCK_BYTES)
        while not self._member.eof and not self._member.needs_input:
            yield self._member.decompress(b"", BLOCK_BYTES)


COMPRESSIONS: dict[str, Callable[[], Unpacker]] = {
    "gz": Gzip,
    "zst": Zstandard,
    "xz": lambda: Bounded(lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)),
    "bz2": lambda: Bounded(bz2.BZ2Decompressor()),
}
"""By the ending of a file's name."""


def unpacked(blocks: Iterable[bytes], compression: Callable[[], Unpacker] | None) -> Iterator[bytes]:
    """The contents of a compressed file of one member or several, in blocks of a bounded size; of a plain file, for
    which `compression` is None, its blocks. Raises ValueError where it is cut short, which zstandard's own reader does
    not notice, or cannot be unpacked. Zeros after a member are no other one: tapes and block devices leave them.
    """
    if compression is None:
        yield from blocks
        return
    member = compression()
    try:
        for block in blocks:
            while block:
                if member.eof:
                    block = block.lstrip(b"\0")
                    if not block:
                        break
                    member = compression()
                yield from member.unpack(block)
                block = member.unused_data if member.eof else b""
    except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk; bz2's have none
            raise
        raise ValueError(f"cannot be unpacked ({error})") from None
    if not member.eof:
        raise ValueError("the compressed file is cut short")


def blocks(stream: BinaryIO, compression: Callable[[], Unpacker] | None) -> Iterator[bytes]:
    """The bytes of a file as they come. `compression`: of COMPRESSIONS, None for a plain file."""
    return iter(lambda: stream.read(PACKED_BLOCK_BYTES if compression else BLOCK_BYTES), b"")
