"""The records of a run as they are written: metrics.jsonl, and the same as lines for people and for grep."""

import json
import re
from pathlib import Path

import orjson

Record = dict[str, float | int | str | None]


def cut_after(path: Path, step: int) -> int:
    """Removes the records after `step` (at step 0 all, for a run begins with one) and torn lines; returns how many.

    The file is replaced as a whole: a kill in here leaves the old one or the new one.
    """
    if not path.exists():
        return 0
    kept = []
    lines = path.read_bytes().splitlines(keepends=True)
    for line in lines:
        try:
            if step > 0 and line.endswith(b"\n") and orjson.loads(line)["step"] <= step:
                kept.append(line)
        except orjson.JSONDecodeError:
            continue
    aside = path.with_suffix(".jsonl.aside")
    aside.write_bytes(b"".join(kept))
    aside.replace(path)
    return len(lines) - len(kept)


def as_line(record: Record) -> str:
    return " ".join(f"{key}={plain(value)}" for key, value in record.items())


def plain(value: float | int | str | None) -> str:
    """One value of a `key=value` line: JSON, but a word needs no quotes and a float has six digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and re.fullmatch(r"[\w./:+-]+", value):
        return value
    return json.dumps(value)
