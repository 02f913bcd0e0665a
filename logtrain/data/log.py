"""A log file, or some of its lines, as text for a question.

Any name will do; .gz, .zst, .xz and .bz2 are unpacked, and UTF-16 is read. Lines are `100-200`, `100-` to the end, or
`-50`, the last 50. Two things are changed, and told in `note`: a line end \\r\\n becomes \\n, and a byte that is not
UTF-8 its escape, as \\xe9. Zero bytes are refused.
"""

import itertools
import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from logtrain.core.untrusted import open_regular
from logtrain.data.compression import COMPRESSIONS, blocks, unpacked
from logtrain.data.lines import MAX_ROW_MB, BadRow, decoded, lines

MAX_CHARS = 1 << 25  # some 250,000 lines; a chat folds those in 3 s
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # as `decoded` has it


class Log(NamedTuple):
    """Lines of a log file."""

    path: str
    """the file, as it was given"""
    lines: list[str]
    """without their ends"""
    first: int
    """number of the first line"""
    note: str
    """how the lines differ from the file's; "" if they do not"""

    @property
    def text(self) -> str:
        """The lines as one string."""
        return "\n".join(self.lines)


class LineRange(NamedTuple):
    """Which lines of a file are asked for."""

    first: int
    last: int | None = None
    """None: to the end"""
    count: int | None = None
    """the last so many of these; None: all"""


def read_log(path: str, which: str = "") -> Log:
    """`which`: lines, "" for all. Raises ValueError for a file that cannot be read, is no text, or has no such lines,
    and for more than MAX_CHARS.
    """
    wanted = line_range(which)
    try:
        file = Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None
    if file.is_dir():
        raise ValueError(f"{path}: a directory; name a file in it")
    compression = COMPRESSIONS.get(file.suffix.lower().removeprefix("."))
    with open_regular(file) as stream:
        every = lines(decoded(unpacked(blocks(stream, compression), compression)), MAX_ROW_MB << 20)
        try:
            found, before = bounded(itertools.islice(every, wanted.first - 1, wanted.last), wanted.count)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not any(line.strip() for line in found):
        what = "nothing but blanks" if found else "no line"
        raise ValueError(f"{path}: {what} in it" + (f" at {which}" if which else ""))
    return as_log(path, found, wanted.first + before)


def line_range(which: str) -> LineRange:
    """What `100-200`, `100-`, `-50` or "" asks for. Raises ValueError."""
    parts = re.fullmatch(r"(\d*)-(\d*)", which or "1-")
    if not parts or which == "-":
        raise ValueError(f"lines {which}: expected as 100-200, 100- to the end, or -50 for the last 50")
    left, right = (int(part) if part else None for part in parts.groups())
    wanted = LineRange(1, count=right) if left is None else LineRange(left, last=right)
    if wanted.first < 1 or wanted.count == 0 or (wanted.last is not None and wanted.last < wanted.first):
        raise ValueError(f"lines {which}: no lines; they count from 1, and the first comes first")
    return wanted


def bounded(some: Iterable[str | BadRow], count: int | None) -> tuple[list[str], int]:
    """The last `count` lines, or all, and how many come before. Raises ValueError for more than MAX_CHARS, for a line
    that is too long, and for zero bytes.
    """
    kept, size, before = deque(), 0, 0
    for line in some:
        if isinstance(line, BadRow):
            raise ValueError(f"a line of more than {MAX_ROW_MB} MB; choose lines without, as 100-200")
        kept.append(line)
        size += len(line)
        while (count and len(kept) > count) or size > MAX_CHARS:
            size -= len(kept.popleft())
            before += 1
        if before and not count:
            break
    if any("\0" in line for line in kept):
        raise ValueError("zero bytes, so no text, or not all of it; choose lines without, as 100-200")
    if before and len(kept) != count:
        raise ValueError(f"more than {MAX_CHARS:,} characters; choose lines, as 100-200, or -50 for the last 50")
    return list(kept), before


def as_log(path: str, found: list[str], first: int) -> Log:
    """Lines without their ends and without bytes that are not UTF-8, with a note of what was changed."""
    pairs = sum(line.endswith("\r\n") for line in found)
    bad = sum(len(NOT_UTF8.findall(line)) for line in found)
    clean = [line[:-2] if line.endswith("\r\n") else line.removesuffix("\n") for line in found]
    notes = [f"{pairs:,} line ends \\r\\n are read as \\n"] if pairs else []
    if bad:
        clean = [NOT_UTF8.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", line) for line in clean]
        notes.append(f"{bad:,} bytes that are not UTF-8 are written as \\xNN")
    return Log(path, clean, first, "; ".join(notes))
