"""What the rows of all formats have in common: how a file's are read, and how text is taken from their columns."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from logtrain.core.untrusted import json_type
from logtrain.data.files import InputFile
from logtrain.data.lines import BadRow

T = TypeVar("T")
MAX_DOMAIN_CHARS = 100


class NoRow(BadRow):
    """What stands in the place of the rows of a file that holds none."""


def parsed_rows(file: InputFile, text_chars: int, parse: Callable[[int, object], Iterable[T]]) -> Iterator[T | BadRow]:
    """What `parse(row, value)` makes of each row of a file, in order; a BadRow in the place of each row that cannot be
    read, or that `parse` raises one for, and a NoRow for a file without rows. Raises ValueError as `file.rows` does.
    """
    row = -1
    for row, value in file.rows(text_chars):
        try:
            if isinstance(value, BadRow):
                raise value
            yield from parse(row, value)
        except BadRow as bad:
            bad.row = row
            yield bad
    if row < 0:
        yield NoRow("the file holds no row", 0)


def columns(row: object, ignore: Iterable[str] = ()) -> dict[str, object]:
    """The columns of a row but for those to ignore and those without a value, which tables have where JSON has nothing.
    Raises BadRow for a row that is no object.
    """
    if not isinstance(row, dict):
        raise BadRow(f"{json_type(row)}, not an object")
    return {name: value for name, value in row.items() if value is not None and name not in ignore}


def holds_text(value: object) -> bool:
    """Whether a column that no rule reads would be lost: a list, an object, or a string that is no number, as all
    columns of a CSV file are strings.
    """
    if not isinstance(value, str):
        return isinstance(value, list | dict) and bool(value)
    text = value.strip()
    if text.lower() in ("", "true", "false", "null", "nan"):
        return False
    try:
        return len(text) > 40 or not math.isfinite(float(text))
    except ValueError:
        return True


def string(row: dict[str, object], name: str, required: bool = True) -> str:
    """A column's text, "" if it is blank or absent and not required. Raises BadRow."""
    value = row.get(name)
    if isinstance(value, str) and value and not value.isspace():
        return value
    if value is not None and not isinstance(value, str):
        raise BadRow(f'"{name}" is {json_type(value)}, not a string')
    if required:
        raise BadRow(f'no "{name}"' if value is None else f'"{name}" is empty')
    return ""


def domain_of(row: dict[str, object]) -> str:
    """The domain that a row names, "" if it names none. Raises BadRow."""
    domain = string(row, "domain", required=False).strip()
    if len(domain) > MAX_DOMAIN_CHARS:
        raise BadRow(f'"domain" has {len(domain):,} characters, more than {MAX_DOMAIN_CHARS}')
    return domain


def group_of(row: object, split_by: str, domain: str) -> str:
    """A row's value in the column `split_by`; `domain`: that of the row, also where its file names it. Raises BadRow
    where it has none.
    """
    if not split_by or split_by == "domain":
        return domain if split_by else ""
    value = row.get(split_by) if isinstance(row, dict) else None
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRow(f'no "{split_by}", which split_by goes by')
    if not isinstance(value, str | int | float):
        raise BadRow(f'"{split_by}" is {json_type(value)}, not a string or a number, and split_by goes by it')
    group = str(value).strip()
    refuse_unencodable(group)
    return group


def refuse_unencodable(text: str) -> None:
    """Raises BadRow for what has no UTF-8 form: bytes that were none in the file, half a surrogate pair from \\u."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            raise BadRow(f"not UTF-8: byte 0x{code - 0xDC00:02x} after {error.start:,} characters") from None
        raise BadRow(f"\\u{code:04x} without its other half is no character") from None
