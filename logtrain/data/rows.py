"""What the rows of all formats have in common: how a file's are read, and how text is taken from their columns."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from logtrain.core.untrusted import json_type
from logtrain.data.csv_rows import Cell
from logtrain.data.files import InputFile
from logtrain.data.lines import BadRow

T = TypeVar("T")
MAX_DOMAIN_CHARS, MAX_NUMBER, ROWS_SEEN = 100, 40, 10


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


class Reading(NamedTuple):
    """What a user says of the columns of rows."""

    ignore: Collection[str] = ()
    """columns that are left out"""
    renamed: Mapping[str, str] = MappingProxyType({})
    """a column in the files, its name or a path with dots -> the name by which the rules know it"""
    split_by: str = ""
    """the column that the split goes by"""

    def named(self, row: object) -> object:
        """A row with the names that the rules know. Raises BadRow."""
        return renamed(row, self.renamed) if self.renamed and isinstance(row, dict) else row

    def unread(self, row: Mapping[str, object], reads: Set[str]) -> list[str]:
        """The columns of a row that hold text and are read neither by its rule, which reads `reads`, nor by a split."""
        if row.keys() <= reads:
            return []  # nearly always
        others = ("domain", self.split_by or "domain")  # a column without a name has one, too: ""
        return [name for name in row if name not in reads and name not in others and holds_text(row[name])]


AS_THEY_ARE = Reading()


def columns(row: object, reading: Reading) -> dict[str, object]:
    """The columns of a row but for those to ignore and those without a value, which tables have where JSON has nothing.
    Raises BadRow for a row that is no object.
    """
    if not isinstance(row, dict):
        raise BadRow(f"{json_type(row)}, not an object")
    if not reading.ignore and None not in row.values():
        return row  # nearly always; a copy takes 5 times as long as this look
    return {name: value for name, value in row.items() if value is not None and name not in reading.ignore}


def renamed(row: dict[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """A row whose columns have other names. Raises BadRow where a column of such a name is there already."""
    row = dict(row)
    found = {ours: (theirs, taken(row, theirs)) for theirs, ours in names.items()}
    for ours, (theirs, value) in found.items():
        if row.get(ours) is not None and value is not None:
            raise BadRow(f'"{ours}" stands beside "{theirs}", which is to have its name; see --columns')
        if value is not None:
            row[ours] = value
    return row


def taken(row: dict[str, object], path: str) -> object:
    """The value of a column, or at a path with dots within one; null is in its place. None where there is none."""
    if path in row:
        return row.pop(path)
    at: object = row
    *outer, last = (int(name) if name.isdecimal() and len(name) < 9 else name for name in path.split("."))
    for name in (*outer, last):
        inside: object = at
        if isinstance(at, dict):
            at = at.get(str(name))
        else:
            at = at[name] if isinstance(at, list) and isinstance(name, int) and name < len(at) else None
    if isinstance(inside, dict):
        inside.pop(str(last), None)
    elif isinstance(inside, list) and isinstance(last, int) and at is not None:
        inside[last] = None
    return at


def holds_text(value: object) -> bool:
    """Whether something of a column that no rule reads would be lost: text, an array or an object that is not empty. A
    number in a CSV file, all of whose columns are text, is none.
    """
    if not isinstance(value, Cell):
        return isinstance(value, str | list | dict) and bool(value)
    try:
        return len(value) > MAX_NUMBER or not math.isfinite(float(value))
    except ValueError:
        return value.strip().lower() not in ("", "true", "false", "null", "nan")


def string(row: dict[str, object], name: str, required: bool = True) -> str:
    """A column's text, "" if it is blank or absent and not required. Raises BadRow."""
    value = row.get(name)
    if isinstance(value, str) and value and not value.isspace():
        return str(value)  # of a Cell, too
    if value is not None and not isinstance(value, str):
        raise BadRow(f'"{name}" is {json_type(value)}, not a string')
    if required:
        raise BadRow(f'no "{name}"' if value is None else f'"{name}" is empty')
    return ""


def domain_of(row: dict[str, object]) -> str:
    """The domain that a row names, "" if it names none. Raises BadRow."""
    if "domain" not in row:
        return ""
    domain = string(row, "domain", required=False).strip()
    if len(domain) > MAX_DOMAIN_CHARS:
        raise BadRow(f'"domain" has {len(domain):,} characters, more than {MAX_DOMAIN_CHARS}')
    return domain


def hint_of_rows(row: Mapping[str, object]) -> str:
    """What to do where an object holds rows and is none itself, as {"version": ..., "data": [{...}, ...]}; "" else."""
    for name, value in row.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value[:ROWS_SEEN]):
            return f'; if "{name}" holds the rows, write it alone into a file: jq .{name}'
    return ""


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
