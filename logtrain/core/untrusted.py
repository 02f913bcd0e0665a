"""Files that others may have written, read so that nothing in them can do harm: they hold JSON alone, of a bounded size
and depth, which becomes values of checked types. Every mistake is a ValueError of one line.
"""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import os
import re
import stat
from collections.abc import Collection, Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, BinaryIO, TypeVar, get_args, get_origin, get_type_hints, is_typeddict

from logtrain.core.printable import printable

T = TypeVar("T")
MAX_BYTES = 1 << 26  # of a JSON file; the largest that is in use, a tokenizer.json, has some 30 MB
MAX_DEPTH = 100  # arrays and objects within each other
HALF_OF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")  # an escaped surrogate: JSON can spell one alone, and UTF-8 cannot
LFS = b"version https://git-lfs.github.com/spec/v1\n"  # how a file begins that stands for another one
ALWAYS = {"always": True}  # metadata of a dataclass's field that every version has written, though it has a default
HASH = re.compile("[0-9a-f]{64}")
SEAL = "sha256"  # the key of a hash over the rest of an object, by which a bit that flipped on the disk is found


def read_json(path: Path, *, what: str = "a JSON object", max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object that a file holds. `what`: the words for it in an error. Raises ValueError for a file that is
    missing, not a regular file, too large, nested too deep, not JSON, that holds another JSON value, or a string which
    is no text.
    """
    return json_object(path, read_bytes(path, max_bytes), what)


def json_object(path: Path, content: bytes, what: str = "a JSON object") -> dict[str, Any]:
    """The JSON object that is the content of a file. Raises ValueError as `read_json` does."""
    try:
        facts = DECODER.decode(content.decode())
        if HALF_OF_A_PAIR.search(content):
            json.dumps(facts, ensure_ascii=False).encode()  # raises where the other half does not follow
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    except RecursionError:
        raise ValueError(f"{path}: arrays and objects within each other too deep to be {what}") from None
    if not isinstance(facts, dict):
        raise ValueError(f"{path}: expected {what}, found {json_type(facts)}")
    check_depth(path, facts, what)
    return facts


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """All of a regular file. Raises ValueError where there is none, it cannot be read, or it has more bytes."""
    with open_regular(path, max_bytes) as stream:
        return stream.read(max_bytes)


def open_regular(path: Path, max_bytes: int | None = None) -> BinaryIO:
    """A regular file, to be read: a device has no end, and a pipe without a writer would never open. Raises ValueError
    where there is none, it cannot be read, or it has more bytes.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    facts = os.fstat(handle)
    is_pointer = stat.S_ISREG(facts.st_mode) and facts.st_size < 1024 and os.pread(handle, len(LFS), 0) == LFS
    if stat.S_ISREG(facts.st_mode) and (max_bytes is None or facts.st_size <= max_bytes) and not is_pointer:
        return os.fdopen(handle, "rb")
    os.close(handle)
    if is_pointer:
        raise ValueError(f"{path}: only a pointer of Git LFS to the file; fetch the file itself: git lfs pull")
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError(f"{path}: not a regular file")
    raise ValueError(f"{path}: {facts.st_size:,} bytes, more than the {max_bytes:,} that such a file may have")


def check_regular(path: Path, max_bytes: int | None = None) -> None:
    """Raises ValueError unless `path` is, or leads to, a regular file, of `max_bytes` at most: whoever opens a pipe or
    a device that others have put there waits for ever.
    """
    open_regular(path, max_bytes).close()


def shown(value: object) -> str:
    """A value of JSON, YAML or TOML as an error shows it: its first characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:80]}..."


def named(key: object) -> str:
    """The name of an entry as an error shows it: on one line, its first characters."""
    return printable(str(key)[:80], one_line=True)


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


DECODER = json.JSONDecoder(parse_int=parse_int)
"""Of every JSON text that others may have written. Raises ValueError, and RecursionError for one that is too deep."""


def check_depth(path: Path | str, facts: object, what: str) -> None:
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


class OtherFields(ValueError):
    """An object has other fields than it should: by `told` of a file that is whole, another version wrote it."""

    def __init__(self, told: str, missing: Collection[str], unknown: Collection[str]):
        super().__init__(told)
        self.missing, self.unknown = sorted(missing), sorted(unknown)

    def told(self) -> str:
        """What it is, if the file is as it was written."""
        version = "another" if self.missing and self.unknown else "an older" if self.missing else "a newer"
        lines = [f"{named(name)} is {what}" for what, names in self.by_kind() for name in names[:5]]
        return f"written by {version} version of logtrain: {', '.join(lines)}"

    def by_kind(self) -> list[tuple[str, list[str]]]:
        """The names of what is missing, and of what is unknown."""
        return [("missing", self.missing), ("unknown to this one", self.unknown)]


def from_json(cls: type[T], facts: object) -> T:
    """The dataclass or NamedTuple of which `dataclasses.asdict` gave this JSON object; a field that has a default may
    be missing, for older versions did not write it. Raises ValueError, which names the field, for one that is missing
    without (OtherFields), unknown (OtherFields) or of another type.
    """
    kinds = types_of(cls)
    missing = kinds.keys() - defaults_of(cls) - facts.keys() if isinstance(facts, dict) else kinds.keys()
    if not isinstance(facts, dict) or missing or facts.keys() - kinds.keys():
        found = ", ".join(named(name) for name in [*facts][:20]) if isinstance(facts, dict) else json_type(facts)
        told = f"expected {', '.join(kinds)}, found {found}"
        raise OtherFields(told, missing, facts.keys() - kinds.keys()) if isinstance(facts, dict) else ValueError(told)
    return cls(**{name: checked(name, value, kinds[name]) for name, value in facts.items()})


types_of = functools.cache(get_type_hints)  # 30 us for a class, as much as all else that a row takes


@functools.cache
def defaults_of(cls: Any) -> frozenset[str]:
    """The fields of a dataclass or NamedTuple that may be left out."""
    if not dataclasses.is_dataclass(cls):
        return frozenset(cls._field_defaults)
    none = dataclasses.MISSING
    fields = (field for field in dataclasses.fields(cls) if field.metadata != ALWAYS)
    return frozenset(field.name for field in fields if (field.default, field.default_factory) != (none, none))


def checked(name: str, value: Any, kind: Any) -> Any:
    """`value`, if it is of the type `kind`: int, float, bool, str, None, Any, a list, a dict, a TypedDict, a
    dataclass, or a union of these. Raises ValueError, which names `name`, for another one.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_typeddict(kind):
        return checked_entries(name, value, kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_json(kind, value)
    if origin is list and isinstance(value, list):
        return [checked(f"{name}[{i}]", item, inner[0]) for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: checked(f"{name}.{named(key)}", item, inner[1]) for key, item in value.items()}
    if origin is UnionType and type(value) in inner:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} = {shown(value)}: expected {type_name(kind)}")
    return value


def checked_entries(name: str, value: Any, kind: Any) -> Any:
    """`value` if it is an object with the entries of a TypedDict and no others, each of its type."""
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected an object, found {json_type(value)}")
    kinds = types_of(kind)
    missing, unknown = kind.__required_keys__ - value.keys(), value.keys() - kinds.keys()
    for key in sorted(missing) or sorted(unknown):
        told = f"{name}.{named(key)}: {'missing' if key in kinds else 'has no meaning there'}"
        raise OtherFields(told, missing, unknown)
    return {key: checked(f"{name}.{key}", item, kinds[key]) for key, item in value.items()}


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
    """A JSON object as a file's content, with a hash over all of it. A float that is not finite is no JSON for other
    programs: whoever has one gives None instead.
    """
    assert SEAL not in facts
    return json.dumps(facts | {SEAL: seal_of(facts)}, indent=1).encode() + b"\n"


def read_sealed(path: Path, what: str = "a JSON object") -> dict[str, Any]:
    """What `sealed` was given. Raises ValueError as `read_json` does, and where a byte has changed."""
    content = read_bytes(path)
    return unsealed(path, json_object(path, content, what), content)


def read_own(path: Path, what: str = "a JSON object") -> dict[str, Any]:
    """What a file of ours holds that older versions did not seal: without a seal it is taken as it is. Raises
    ValueError as `read_sealed` does, also where the seal's own name has changed.
    """
    content = read_bytes(path)
    facts = json_object(path, content, what)
    return unsealed(path, facts, content) if has_seal(facts) else facts


def has_seal(facts: dict[str, Any]) -> bool:
    """Whether an object has been sealed, also where the seal's own name has changed since."""
    return SEAL in facts or any(isinstance(value, str) and HASH.fullmatch(value) for value in facts.values())


def unsealed(path: Path, facts: dict[str, Any], content: bytes) -> dict[str, Any]:
    """What `sealed` was given. `facts`: what the file's `content` holds. Raises ValueError where a byte has changed, if
    only a blank: a hash of the file, by which others know it, is another one then.
    """
    rest = {name: value for name, value in facts.items() if name != SEAL}
    if content != sealed(rest):
        raise ValueError(f"{path}: its content has changed since it was written ({SEAL} does not fit)")
    return rest


def seal_of(facts: dict[str, Any]) -> str:
    """The SHA-256 of an object, in hexadecimal, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
