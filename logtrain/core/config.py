"""Configs: dataclass defaults < TOML files, left to right < command-line flags.

    config = load(Config, ["launch/demo/cpt.toml", "mine.toml", "--optim.lr", "3e-5", "--no_compile"])

A config is a frozen, keyword-only dataclass; the string literal below a field is its help. A field is an int, float,
bool, str, Literal, tuple[T, ...] or another config, which is a table in TOML and a dotted prefix in flags: `[optim]`
with `lr = 1e-5` is `--optim.lr 1e-5`. Both sources fill one flat dictionary {dotted key: value}, checked against one
list of fields, so a mistake reads the same from either: a ValueError of one line that says where. TOML values carry
their type, and it must be the field's; flags are text, and tyro gives them their type. tyro also writes --help.
"""

import dataclasses
import json
import os
import re
import tomllib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import tomli_w
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveTypeInfo

from logtrain.core.entry import program_name

T = TypeVar("T")
REQUIRED = dataclasses.MISSING


def load(cls: type[T], argv: Sequence[str]) -> T:
    """Builds a `cls` from its defaults, then the TOML files in `argv`, then the flags; the last word on a key counts.

    Flags are `--key value`, `--key=value`, `--switch` / `--no_switch` and `--list a b c`; in a key, `-` is `_`. A TOML
    file is any `*.toml` that is not the value of a flag. `--help` prints help and exits. Raises ValueError: one line.
    """
    if "--help" in argv or "-h" in argv:
        _print_help(cls)
    fields = dict(_fields(cls))
    paths, flags = _read_argv(argv, fields)
    values = {key: default for key, (_, default) in fields.items()}
    for path in paths:
        values |= _read_toml(path, fields)
    values |= flags
    missing = [key for key, value in values.items() if value is REQUIRED]
    if missing:
        given = " ".join(f"--{key} ..." for key in missing)
        raise ValueError(f"{', '.join(missing)}: required; give {given}, or set it in a TOML file")
    return _build(cls, values)


def dump(config: Any) -> str:
    """TOML text of every field of `config`; `load(type(config), [a file with this text])` gives an equal config."""
    return tomli_w.dumps(dataclasses.asdict(config))


# -- the fields of a config, as one flat table -----------------------------------------------------

Fields = dict[str, tuple[Any, Any]]  # {dotted key: (type, default or REQUIRED)}


def _fields(cls: type, prefix: str = "", default: Any = REQUIRED) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yields the items of Fields for `cls` and the configs within it; `default` is the instance it has as a field."""
    types = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if default is not REQUIRED:
            value = getattr(default, field.name)
        else:
            value = field.default if field.default_factory is REQUIRED else field.default_factory()
        if dataclasses.is_dataclass(types[field.name]):
            yield from _fields(types[field.name], f"{prefix}{field.name}.", value)
        else:
            yield prefix + field.name, (types[field.name], value)


def _build(cls: type[T], values: dict[str, Any], prefix: str = "") -> T:
    types = get_type_hints(cls)
    arguments = {}
    for field in dataclasses.fields(cls):
        key = prefix + field.name
        nested = dataclasses.is_dataclass(types[field.name])
        arguments[field.name] = _build(types[field.name], values, f"{key}.") if nested else values[key]
    return cls(**arguments)


def _expected(kind: Any) -> str:
    """The type of a field, in the words of an error."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(_shown(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, each item {_expected(get_args(kind)[0])}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string"}[kind]


def _shown(value: Any) -> str:
    """A value as the user wrote it, near enough: JSON is TOML for all but dates."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _hint(key: str, known_keys: Iterable[str], dashes: str = "") -> str:
    """Names the known key nearest to `key`, as a whole or in its last part (`lrr`, `train.lr`: `optim.lr`)."""

    def likeness(known: str) -> tuple[float, float]:
        whole = SequenceMatcher(None, key, known).ratio()
        return max(whole, SequenceMatcher(None, key.split(".")[-1], known.split(".")[-1]).ratio()), whole

    score, best = max((likeness(known), known) for known in known_keys)
    return f"did you mean {dashes}{best}?" if score[0] >= 0.6 else "--help lists all there are"


# -- flags -----------------------------------------------------------------------------------------


def _read_argv(argv: Sequence[str], fields: Fields) -> tuple[list[Path], dict[str, Any]]:
    """Splits `argv` into its TOML files and {key: value} of its flags."""
    negations = {_negated(key): key for key, (kind, _) in fields.items() if kind is bool}
    paths: list[Path] = []
    values: dict[str, Any] = {}
    words = deque(argv)
    while words:
        word = words.popleft()
        if not word.startswith("--"):
            if not word.endswith(".toml"):
                raise ValueError(f"{word}: neither a flag (--key value) nor a TOML file (*.toml)")
            paths.append(Path(word))
            continue

        flag, equals, text = word.partition("=")
        name = flag[2:].replace("-", "_")
        key = name if name in fields else negations.get(name)
        if key is None:
            raise ValueError(f"{flag}: unknown flag; {_hint(name, fields, dashes='--')}")
        kind = fields[key][0]
        is_list = get_origin(kind) is tuple
        texts = [text] if equals else []
        room = 0 if equals or kind is bool else len(words) if is_list else 1
        while words and len(texts) < room and not words[0].startswith("--"):
            texts.append(words.popleft())

        if kind is bool:
            if texts:
                raise ValueError(f"{word}: a switch takes no value; it is on with --{key}, off with --{_negated(key)}")
            values[key] = name == key
        elif is_list:
            values[key] = tuple(_from_text(item, get_args(kind)[0], flag) for item in texts)
        elif texts:
            values[key] = _from_text(texts[0], kind, flag)
        else:
            raise ValueError(f"{flag}: has no value; expected {_expected(kind)}")
    return paths, values


def _negated(key: str) -> str:
    return re.sub(r"[^.]+$", r"no_\g<0>", key)  # optim.fused -> optim.no_fused


def _from_text(text: str, kind: Any, flag: str) -> Any:
    try:
        text.encode()  # bytes that are not UTF-8 reach argv as lone surrogates, which no TOML file can hold
        return ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, set())).instance_from_str([text])
    except ValueError:
        raise ValueError(f"{flag} {ascii(text) if kind is str else text}: expected {_expected(kind)}") from None


def _print_help(cls: type) -> NoReturn:
    speaks = os.environ.get("RANK", "0") == "0"
    program = f"{program_name()} [FILE.toml ...]"
    tyro.cli(cls, args=["--help"], prog=program, use_underscores=True, console_outputs=speaks)
    raise AssertionError("tyro exits after --help")


# -- TOML ------------------------------------------------------------------------------------------


def _read_toml(path: Path, fields: Fields) -> dict[str, Any]:
    """Reads {key: value} of one file."""
    try:
        text = path.read_bytes().decode()
        tree = tomllib.loads(text)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line (\d+)", str(error))
        raise ValueError(f"{path}:{at[1] if at else text.count(chr(10)) + 1}: not TOML: {error}") from None

    table_keys = {key[: dot.start()] for key in fields for dot in re.finditer(r"\.", key)}
    values: dict[str, Any] = {}

    def read(table: dict[str, Any], parents: tuple[str, ...]) -> None:
        for name, value in table.items():
            names = (*parents, name)
            key = ".".join(names)
            if key in fields:
                try:
                    values[key] = _typed(value, fields[key][0])
                except ValueError as error:
                    raise ValueError(f"{path}:{_line_of(text, names)}: {key} = {error}") from None
            elif key not in table_keys:
                hint = _hint(key, [*fields, *table_keys])
                raise ValueError(f"{path}:{_line_of(text, names)}: {key}: unknown key; {hint}")
            elif isinstance(value, dict):
                read(value, names)
            else:
                raise ValueError(f"{path}:{_line_of(text, names)}: {key} = {_shown(value)}: expected a table, [{key}]")

    read(tree, ())
    return values


def _typed(value: Any, kind: Any) -> Any:
    """`value` if it is of the field's type; only a list, and a float written without a point, change theirs."""
    if not _fits(value, kind):
        raise ValueError(f"{_shown(value)}: expected {_expected(kind)}")
    if get_origin(kind) is tuple:
        return tuple(_typed(item, get_args(kind)[0]) for item in value)
    return float(value) if kind is float else value


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        return type(value) is list and all(_fits(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if kind is float and type(value) is int:
        return abs(value) <= 2**53  # a float64 may not hold a greater one
    return type(value) is kind  # not isinstance: True is an int


def _line_of(text: str, names: tuple[str, ...]) -> int:
    """The line where the value at `names` ends: the shortest beginning of the text that is TOML and has it."""
    lines = text.split("\n")
    for count in range(1, len(lines)):
        try:
            found = tomllib.loads("\n".join(lines[:count]) + "\n")
        except tomllib.TOMLDecodeError:  # cut within a value of several lines
            continue
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        if found is not None:
            return count
    return len(lines)
