"""The files in a zip archive, read as streams. What an archive says of itself is bounded before it is believed."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, ClassVar

from logtrain.core.untrusted import open_regular

MAX_DIRECTORY = 1 << 25  # bytes: 200,000 and more names, which take ten times as much memory
END, END_64 = b"PK\5\6", b"PK\6\6"  # of the list of members; the rest of both as in the ZIP specification, 4.3.14-16
NAMES = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma"}
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack without a bound


class Archive:
    """A zip archive. Only the one that was read last is open, for there may be thousands."""

    _open: ClassVar["Archive | None"] = None

    def __init__(self, path: Path):
        """Raises ValueError where it is no zip archive."""
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        self.members = [info for info in self._opened().infolist() if not info.filename.endswith("/")]

    def open(self, member: zipfile.ZipInfo) -> BinaryIO:
        """The content of a member. Raises ValueError for one that cannot be read; reading it on raises BadZipFile and
        zlib.error.
        """
        if member.flag_bits & 1:
            raise ValueError("encrypted; unpack the archive")
        if member.compress_type not in METHODS:
            method = NAMES.get(member.compress_type, f"method {member.compress_type}")
            raise ValueError(f"packed by {method}, not deflate; unpack the archive")
        try:
            return self._opened().open(member)  # pyright: ignore[reportReturnType]  # IO[bytes]
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"damaged ({error})") from None

    def _opened(self) -> zipfile.ZipFile:
        if self._zip is None:
            if Archive._open is not None and Archive._open._zip is not None:
                Archive._open._zip.close()
                Archive._open._stream.close()
                Archive._open._zip = None
            self._stream = stream = open_regular(self.path)
            try:
                refuse_large_directory(stream)
                self._zip = zipfile.ZipFile(stream)
            except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError) as error:
                stream.close()
                raise ValueError(f"{self.path}: no zip archive, or damaged ({error})") from None
            Archive._open = self
        return self._zip


def refuse_large_directory(stream: BinaryIO) -> None:
    """Raises BadZipFile for an archive whose list of members is too large to be read into memory."""
    size = stream.seek(0, 2)
    tail_size = min(size, (1 << 16) + 22 + 20 + 56)  # its end: a comment, the end of the list, and that of large ones
    stream.seek(size - tail_size)
    tail = stream.read(tail_size)
    for mark, at, form in ((END, 12, "<L"), (END_64, 40, "<Q")):
        found = tail.rfind(mark)
        if found >= 0 and (claimed := struct.unpack_from(form, tail, found + at)[0]) > MAX_DIRECTORY:
            if mark == END and claimed == 0xFFFFFFFF:  # told by the other
                continue
            raise zipfile.BadZipFile(f"a list of members of {claimed:,} bytes, more than {MAX_DIRECTORY:,}")


DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError)
"""What reading a member raises where the archive is damaged."""
