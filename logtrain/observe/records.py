"""The records of a run in metrics.jsonl, and as lines of key=value for people and for grep."""

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import orjson

from logtrain.core.atomic import write_file
from logtrain.core.origin import Origin, strange
from logtrain.core.sealed_lines import own_object_of
from logtrain.core.untrusted import open_regular

Record = dict[str, float | int | str | None]


class Cut(NamedTuple):
    """The lines of metrics.jsonl that `cut_after` found."""

    later: int
    """Number of removed records that were made after the step, or torn by a kill at the end of the file."""
    damaged: int
    """Number of removed lines before the last whole record that are no records."""
    last: int
    """Step of the last record that stays; -1 if none does."""
    crc32: int
    """Checksum of what stays."""


def cut_after(path: Path, step: int, validates: bool = False, wanted: Origin | None = None) -> Cut:
    """Remove the records after `step` (at step 0 all of them, because a run begins with a record of step 0) and the
    lines that are no records. A file that does not exist has none. `validates`: remove the validations at `step` as
    well, because they are made again. `wanted`: what records of this file say of themselves; others are none.

    The file is replaced as a whole, so a kill meanwhile leaves the old one or the new one. Raises OSError.
    """
    if not path.exists():
        return Cut(0, 0, -1, 0)
    with open_regular(path) as stream:
        lines = stream.read().splitlines(keepends=True)
    steps = [step_of(line, wanted) for line in lines]
    again = {i for i, of in enumerate(steps) if validates and of == step and "set" in orjson.loads(lines[i])}
    kept = [
        line
        for i, (line, of) in enumerate(zip(lines, steps, strict=True))
        if of is not None and 0 <= of <= step and step > 0 and i not in again
    ]
    whole = len(steps) - next((i for i, of in enumerate(reversed(steps)) if of is not None), len(steps))
    damaged = steps[:whole].count(None)
    content = b"".join(kept)
    write_file(path, content)
    last = max((of for of in steps if of is not None and of <= step), default=-1) if step > 0 else -1
    return Cut(len(lines) - len(kept) - damaged, damaged, last, zlib.crc32(content))


def step_of(line: bytes, wanted: Origin | None = None) -> int | None:
    """The step of a line of metrics.jsonl; None for a line that is torn, has changed, or is no record of there."""
    record = own_object_of(line) if line.endswith(b"\n") else None
    step = record.get("step") if record and not (wanted and strange(record, wanted)) else None
    return step if type(step) is int else None


def as_line(record: Mapping[str, float | int | str | None]) -> str:
    """A record as `key=value key=value`, without its time."""
    return " ".join(f"{key}={plain(value)}" for key, value in record.items() if key != "time")


def plain(value: float | int | str | None) -> str:
    """One value of a `key=value` line: JSON, but a word needs no quotes and a float has six digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and re.fullmatch(r"[\w./:+-]+", value):
        return value
    return json.dumps(value)
