"""Rows of training data as a person reviews them: each as its parts, which can be edited; and what comes of a review.

parts = rows.parts(3)          [Part(name="user", path="messages/0/content", text="...", ...), ...]
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from logtrain.data.files import InputFile
from logtrain.data.lines import BadRow

MAX_BYTES = 1 << 29  # of a file, which is in memory
LISTS = {"messages": ("role", "content"), "conversations": ("from", "value")}
SAID_BY = {"assistant": "assistant", "gpt": "assistant", "output": "assistant"}
COLUMNS = ("system", "instruction", "input", "log", "output", "text")  # in the order in which they are shown


class Part(NamedTuple):
    """A text of a row."""

    name: str
    """what it is called in the row: a role or a column"""
    path: str
    """where it is: keys and numbers, with slashes between"""
    text: str
    is_answer: bool
    """whether a model is to say it"""


class ReviewedFile:
    """The rows of a file."""

    def __init__(self, path: Path):
        """Reads them. Raises ValueError for a file that holds anything but rows of text, or is too large."""
        file = InputFile(path)
        if file.kind.is_text:
            raise ValueError(f"{path}: a raw text has no rows; give .json or .jsonl")
        if file.num_bytes > MAX_BYTES:
            raise ValueError(f"{path}: {file.num_bytes:,} bytes, more than {MAX_BYTES:,}; review a part of it")
        self.path = path
        self.rows: list[dict[str, Any]] = []
        for number, value in file.rows(1):
            if isinstance(value, BadRow):
                raise ValueError(f"{path}: row {number}: {value}")
            if not isinstance(value, dict) or not any(parts_of(value)):
                raise ValueError(f"{path}: row {number}: none of {', '.join([*LISTS, *COLUMNS])} in it")
            self.rows.append(value)
        if not self.rows:
            raise ValueError(f"{path}: no row in it")
        self.hashes = [hash_of(row) for row in self.rows]

    def parts(self, number: int) -> list[Part]:
        """The texts of a row."""
        return list(parts_of(self.rows[number]))

    def edited(self, number: int, edits: Mapping[str, str]) -> dict[str, Any]:
        """A row with other texts, by their paths. Raises ValueError for a path that the row does not have."""
        row, known = copy.deepcopy(self.rows[number]), {part.path for part in self.parts(number)}
        for path, text in edits.items():
            if path not in known:
                raise ValueError(f"edits: row {number} has no {path!r}")
            *keys, last = path.split("/")
            place: Any = row
            for key in keys:
                place = place[int(key) if isinstance(place, list) else key]
            place[last] = text
        return row


def parts_of(row: dict[str, Any]) -> Iterator[Part]:
    """The texts of a row, in the order of a talk."""
    for column in COLUMNS:
        if isinstance(text := row.get(column), str) and text:
            yield Part(column, column, text, column in SAID_BY)
    for column, (role, content) in LISTS.items():
        turns = row.get(column)
        for i, turn in enumerate(turns if isinstance(turns, list) else []):
            if isinstance(turn, dict) and isinstance(turn.get(content), str) and isinstance(turn.get(role), str):
                yield Part(turn[role], f"{column}/{i}/{content}", turn[content], turn[role] in SAID_BY)


def hash_of(row: dict[str, Any]) -> str:
    """What a row is told by, whatever the order of its keys."""
    return hashlib.sha256(line_of(row, is_sorted=True).removesuffix(b"\n")).hexdigest()


def line_of(row: dict[str, Any], is_sorted: bool = False) -> bytes:
    """A row as a line of JSON."""
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | (orjson.OPT_SORT_KEYS if is_sorted else 0))
    except TypeError:  # an integer of more than 64 bits
        return json.dumps(row, sort_keys=is_sorted, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
