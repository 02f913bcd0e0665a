"""Files that others may have written, read so that nothing in them can do harm: they hold JSON alone, of a bounded size
and depth, which becomes values of checked types. Every mistake is a ValueError of one line.
"""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import stat
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
MAX_BYTES = 1 << 26  # of a JSON file; the largest that is in use, a tokenizer.json, has some 30 MB
MAX_DEPTH = 100  # arrays and objects within each other
SEAL = "sha256"  # the key of a hash over the rest of an object, by which a bit that flipped on the disk is found


def read_json(path: Path, *, what: str = "a JSON object", max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object that a file holds. `what`: the words for it in an error. Raises ValueError for a file that is
    missing, not a regular file, too large, nested too deep, not JSON, or that holds another JSON value.
    """
    try:
        facts = json.loads(read_bytes(path, max_bytes).decode(), parse_int=parse_int)
    except (UnicodeDecodeError, ValueError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not JSON ({error})") from None
    except RecursionError:
        raise ValueError(f"{path}: arrays and objects within each other too deep to be {what}") from None
    if not isinstance(facts, dict):
        raise ValueError(f"{path}: expected {what}, found {json_type(facts)}")
    check_depth(path, facts, what)
    return facts


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """All of a regular file. Raises ValueError where there is none, it cannot be read, or it has more bytes."""
    check_regular(path, max_bytes)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def check_regular(path: Path, max_bytes: int | None = None) -> None:
    """Raises ValueError unless `path` is, or leads to, a regular file, of `max_bytes` at most: whoever opens a pipe or
    a device that others have put there waits for ever.
    """
    try:
        mode, size = path.stat().st_mode, path.stat().st_size
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: not a regular file")
    if max_bytes is not None and size > max_bytes:
        raise ValueError(f"{path}: {size:,} bytes, more than the {max_bytes:,} that such a file may have")


def shown(value: object) -> str:
    """A JSON value as an error shows it: its first characters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def nearest(name: str, names: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """The `n` names at most that are most like `name`. Comparing takes long for long names and for many, so the first
    1,000 short ones count.
    """
    few = itertools.islice((other for other in names if len(other) < 200), 1000)
    return difflib.get_close_matches(name[:200], few, n, cutoff)


def parse_int(text: str) -> int:
    """The integer that a JSON number is. Raises ValueError beyond 40 digits: Python would take minutes for some."""
    if len(text) > 40:
        raise ValueError(f"an integer of {len(text):,} digits")
    return int(text)


def check_depth(path: Path, facts: object, what: str) -> None:
    """Raises ValueError beyond MAX_DEPTH, so that code which recurses over the value later has room on the stack."""
    level = [facts]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError(f"{path}: arrays and objects within each other too deep to be {what}")


def from_json(cls: type[T], facts: object) -> T:
    """The dataclass of which `dataclasses.asdict` gave this JSON object. Raises ValueError, which names the field, for
    a field that is missing, unknown or of another type.
    """
    kinds = types_of(cls)
    if not isinstance(facts, dict) or facts.keys() != kinds.keys():
        found = ", ".join(map(str, facts)) if isinstance(facts, dict) else json_type(facts)
        raise ValueError(f"expected {', '.join(kinds)}, found {found}")
    return cls(**{name: checked(name, facts[name], kind) for name, kind in kinds.items()})


types_of = functools.cache(get_type_hints)  # 30 us for a class, as much as all else that a row takes


def checked(name: str, value: Any, kind: Any) -> Any:
    """`value`, if it is of the type `kind`: int, float, bool, str, None, a list, a dict, a dataclass, or a union of
    these. Raises ValueError, which names `name`, for another one.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_json(kind, value)
    if origin is list and isinstance(value, list):
        return [checked(f"{name}[{i}]", item, inner[0]) for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: checked(f"{name}.{key}", item, inner[1]) for key, item in value.items()}
    if origin is UnionType and type(value) in inner:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} = {shown(value)}: expected {type_name(kind)}")
    return value


def json_type(value: object) -> str:
    """A JSON value's type in words."""
    words = {
        str: "a string",
        int: "a number",
        float: "a number",
        bool: "a boolean",
        list: "an array",
        dict: "an object",
    }
    return words.get(type(value), "null")


def type_name(kind: Any) -> str:
    """A field's type in words."""
    if get_origin(kind) is UnionType:
        return " or ".join(map(type_name, get_args(kind)))
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string", NoneType: "null"}
    return words.get(kind) or {list: "an array", dict: "an object"}[get_origin(kind)]


def sealed(facts: dict[str, Any]) -> bytes:
    """A JSON object as a file's content, with a hash over all of it."""
    assert SEAL not in facts
    return json.dumps(facts | {SEAL: seal_of(facts)}, indent=1).encode() + b"\n"


def read_sealed(path: Path, what: str = "a JSON object") -> dict[str, Any]:
    """The object of a file that `sealed` made. Raises ValueError as `read_json` does, and for a changed file."""
    facts = read_json(path, what=what)
    if facts.pop(SEAL, None) != seal_of(facts):
        raise ValueError(f"{path}: its content has changed since it was written ({SEAL} does not fit)")
    return facts


def seal_of(facts: dict[str, Any]) -> str:
    """The SHA-256 of an object, in hexadecimal, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
