"""Files of JSON lines to which a program only adds, so that a kill loses nothing: answers, verdicts, decisions.

    with adding(file) as stream: add(stream, facts)
    for number, facts in read_sealed_lines(file, "it is asked again"): ...

Every line has a hash of the rest of it. Only the end of a file may be torn, by a kill: that is ignored, and cut off by
the next writer. Any other line that is not as it was written is refused.
"""

import os
import re
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

import orjson

from logtrain.core.atomic import naming
from logtrain.core.untrusted import (
    MAX_BYTES,
    SEAL,
    OtherFields,
    check_depth,
    from_json,
    has_seal,
    open_regular,
    seal_of,
)

T = TypeVar("T")
WHOLE = re.compile(rb'"%s":"[0-9a-f]{64}"\}' % SEAL.encode())  # the end of a line; a torn one has none
BLOCK = 1 << 16


def sealed_line(facts: dict[str, Any]) -> bytes:
    """An object as a line, with its hash. A float that is not finite is null, as JSON has it."""
    facts = orjson.loads(orjson.dumps(facts))
    return orjson.dumps(facts | {SEAL: seal_of(facts)}, option=orjson.OPT_APPEND_NEWLINE)


def adding(file: Path) -> FileIO:
    """The file, to be added to; it is made where it is missing. Raises OSError, and ValueError where it is no regular
    file.
    """
    if os.path.lexists(file):
        open_regular(file).close()
    stream = FileIO(file, "a+")  # without a buffer, whose rest would be written, and fail once more, on closing
    mend_end(stream)
    return stream


def add(stream: FileIO, *lines: dict[str, Any], is_durable: bool = False) -> None:
    """Add objects. `is_durable`: whether they are on the disk (fsync) before this returns. Raises OSError."""
    with naming(Path(os.fsdecode(stream.name))):
        rest = b"".join(map(sealed_line, lines))
        while rest:
            rest = rest[stream.write(rest) or 0 :]
        if is_durable:
            os.fsync(stream.fileno())


def mend_end(stream: FileIO) -> None:
    """Cut off what a kill has left of a last line; a whole one without its line end gets it."""
    end = at = stream.seek(0, os.SEEK_END)
    tail = b""
    while at and b"\n" not in tail:
        at = max(0, at - BLOCK)
        stream.seek(at)
        tail = stream.read(min(BLOCK, end - at)) + tail
    torn = tail[tail.rfind(b"\n") + 1 :]
    stream.seek(0, os.SEEK_END)
    if WHOLE.search(torn):
        stream.write(b"\n")
    elif torn:
        stream.truncate(end - len(torn))


def read_sealed_lines(
    file: Path, remedy: str, torn: Callable[[int], None] = lambda _: None, is_made_again: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, from 1, object) of each line, without its hash. `remedy`: what comes of deleting a line, for errors.
    `torn` is told the number of a last line that was torn. `is_made_again`: whether what a lost line says is made
    again, so that any may be torn, as older versions left them. Raises ValueError for a line that has changed since it
    was written, or that is too long.
    """
    if not os.path.lexists(file):
        return
    with open_regular(file) as stream:
        number = 0
        while line := stream.readline(MAX_BYTES + 1):
            number += 1
            facts = object_of(line)
            if facts is not None:
                yield number, facts
            elif is_torn(line) and (is_made_again or not line.endswith(b"\n")):
                torn(number)
            elif line.strip():
                raise ValueError(f"{file} line {number}: has changed since it was written; delete the line, {remedy}")


def is_torn(line: bytes) -> bool:
    """Whether a line is none, and may be the beginning of one."""
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return len(line) <= MAX_BYTES and not WHOLE.search(line) and bool(line.strip())
    return False


def parsed(cls: type[T], facts: dict[str, Any], where: str) -> T:
    """The dataclass or NamedTuple that a line holds. `where`: file and line, for errors. Raises ValueError."""
    try:
        return from_json(cls, facts)
    except OtherFields as other:
        raise ValueError(f"{where}: {other.told()}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def own_object_of(line: bytes) -> dict[str, Any] | None:
    """The object of a line of ours that older versions did not seal: without a hash it is taken as it is; None where it
    is not as it was written, or empty, as no version wrote one.
    """
    try:
        facts = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return object_of(line) if not isinstance(facts, dict) or has_seal(facts) else facts or None


def object_of(line: bytes) -> dict[str, Any] | None:
    """The object of a line, without its hash; None where it is not as it was written."""
    try:
        facts = orjson.loads(line)
        check_depth("", facts, "")
    except ValueError:
        return None
    return facts if isinstance(facts, dict) and facts.pop(SEAL, None) == seal_of(facts) else None
