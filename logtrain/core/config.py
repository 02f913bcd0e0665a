"""Configs: dataclass defaults < TOML files, left to right < command-line flags.

    config = load(Config, ["launch/recipes/demo.toml", "mine.toml", "--optim.lr", "3e-5", "--no_compile"])

A config is a frozen, keyword-only dataclass with the base `Config` of kinds.py; the string literal below a field is its
help. A field is an int, float, bool, str, Literal, tuple[T, ...], ONE_OR_MANY, or another config, which is a table in
TOML and a dotted prefix in flags: `[optim]` with `lr = 1e-5` is `--optim.lr 1e-5`. A dict[str, T] is a table of which
the user names the keys. Both sources fill one flat dictionary {dotted key: value}, checked against one list of fields,
so a mistake reads the same from either: a ValueError of one line that says where.

tyro writes --help, from the same dataclasses. It does not read the flags: a mistake is a box of several lines there,
files of settings are not its business, and of a TOML file it could not name the line.
"""

import dataclasses
import itertools
import re
import tomllib
from collections import deque
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import tomli_w

from logtrain.core.help import is_offered, print_help
from logtrain.core.kinds import ONE_OR_MANY, as_json, expected, is_open, kinds_of, typed
from logtrain.core.located import each, located, places_of
from logtrain.core.location import origin_of

T = TypeVar("T")
REQUIRED = dataclasses.MISSING


def load(cls: type[T], argv: Sequence[str], writes: bool = True) -> T:
    """Builds a `cls` from its defaults, then the TOML files in `argv`, then the flags; the last word on a key counts.
    Paths that are URIs become paths of this machine. `writes`: whether what the config says is written will be.

    Flags are `--key value`, `--key=value`, `--switch` / `--no_switch` and `--list a b c`; in a key, `-` is `_`. A TOML
    file is any `*.toml` that is not the value of a flag. `--help` prints help and exits. Raises ValueError: one line.
    """
    if "--help" in argv or "-h" in argv:
        print_help(cls)
    fields = fields_of(cls)
    paths, flags = read_argv(argv, fields)
    if foreign := [key for key in flags if not is_offered(cls, key)]:
        raise ValueError(f"--{foreign[0]}: changes nothing here; --help lists what does")
    values = {key: field.default for key, field in fields.items() if not is_open(field.kind)}
    for path in paths:
        values |= read_toml(path, fields)
    values |= flags
    if missing := [key for key, value in values.items() if value is REQUIRED]:
        given = " ".join(f"--{key} ..." for key in missing)
        raise ValueError(f"{', '.join(missing)}: required; give {given}, or set it in a TOML file")
    return located(build(cls, values), writes)


def dump(config: Any) -> str:
    """TOML text of every field of `config`; `load(type(config), [a file with this text])` gives an equal config."""
    values = dataclasses.asdict(config)
    for key in places_of(type(config)):
        values[key] = each(values[key], origin_of)
    return tomli_w.dumps(values)


# ---- the fields of a config, as one flat table


class Field(NamedTuple):
    """The type and the default of one setting."""

    kind: Any
    """One of int, float, bool and str, a Literal, a tuple or a dict[str, ...] of one of these, or ONE_OR_MANY."""
    default: Any
    """The value where nobody sets one; REQUIRED where somebody must."""


def fields_of(cls: Any, prefix: str = "", default: Any = REQUIRED) -> dict[str, Field]:
    """{dotted key: Field} of `cls` and of the configs within it. `default`: the instance that holds the defaults, where
    `cls` is the type of a field that has one.
    """
    kinds, found = kinds_of(cls), {}
    for field in dataclasses.fields(cls):
        if default is not REQUIRED:
            value = getattr(default, field.name)
        else:
            value = field.default if field.default_factory is REQUIRED else field.default_factory()
        kind, key = kinds[field.name], prefix + field.name
        found |= fields_of(kind, f"{key}.", value) if dataclasses.is_dataclass(kind) else {key: Field(kind, value)}
    return found


def build(cls: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """Builds a `cls` from the values by their dotted keys. Raises ValueError where the class refuses one."""

    def value_of(key: str, kind: Any) -> Any:
        if dataclasses.is_dataclass(kind):
            return build(kind, values, f"{key}.")
        if is_open(kind):
            return {name.removeprefix(f"{key}."): value for name, value in values.items() if name.startswith(f"{key}.")}
        return values[key]

    kinds = kinds_of(cls)
    return cls(**{field.name: value_of(prefix + field.name, kinds[field.name]) for field in dataclasses.fields(cls)})


def kind_of(key: str, fields: dict[str, Field]) -> Any:
    """The type of a setting by its dotted key; None if there is no such setting."""
    parent, dot, name = key.partition(".")
    if dot and name and "." not in name and parent in fields and is_open(fields[parent].kind):
        return get_args(fields[parent].kind)[1]
    return fields[key].kind if key in fields and not is_open(fields[key].kind) else None


def nearest(key: str, known_keys: Iterable[str], dashes: str = "") -> str:
    """Names the known key nearest to `key`, as a whole or in its last part (`lrr`, `train.lr`: `optim.lr`)."""

    def likeness(known: str) -> tuple[float, float]:
        whole = SequenceMatcher(None, key, known).ratio()
        return max(whole, SequenceMatcher(None, key.split(".")[-1], known.split(".")[-1]).ratio()), whole

    score, best = max((likeness(known), known) for known in known_keys)
    return f"did you mean {dashes}{best}?" if score[0] >= 0.6 else "--help lists all there are"


# ---- flags: text, which gets the type of its field


def read_argv(argv: Sequence[str], fields: dict[str, Field]) -> tuple[list[Path], dict[str, Any]]:
    """Splits `argv` into its TOML files and {dotted key: value} of its flags. Raises ValueError for an unknown flag, or
    a value that is missing or of another type.
    """
    negations = {negated(key): key for key, field in fields.items() if field.kind is bool}
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
        key = name if kind_of(name, fields) is not None else negations.get(name)
        if key is None:
            raise ValueError(f"{flag}: unknown flag; {nearest(name, fields, dashes='--')}")
        kind = kind_of(key, fields)
        is_list = get_origin(kind) is tuple or kind == ONE_OR_MANY
        texts = [text] if equals else []
        room = 0 if equals or kind is bool else len(words) if is_list else 1
        while words and len(texts) < room and not words[0].startswith("--"):
            texts.append(words.popleft())
        if kind is bool and texts:
            raise ValueError(f"{word}: a switch takes no value; it is on with --{key}, off with --{negated(key)}")
        if not (texts or kind is bool or get_origin(kind) is tuple):
            raise ValueError(f"{flag}: has no value; expected {expected(kind)}")
        if kind == ONE_OR_MANY:
            found = tuple(from_text(item, str, flag) for item in texts)
            values[key] = found[0] if len(found) == 1 else found
        elif is_list:
            values[key] = tuple(from_text(item, get_args(kind)[0], flag) for item in texts)
        else:
            values[key] = name == key if kind is bool else from_text(texts[0], kind, flag)
    return paths, values


def words_first(argv: list[str], flag: str) -> list[str]:
    """Arguments of which the first words that are no flags belong to `flag`."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    return [flag, *words, *argv[len(words) :]] if words else argv


def negated(key: str) -> str:
    """The switch that turns a key off: optim.fused -> optim.no_fused."""
    return re.sub(r"[^.]+$", r"no_\g<0>", key)


def from_text(text: str, kind: Any, flag: str) -> Any:
    """The value of a flag, in the type of its field. Raises ValueError where the text is none of that type."""
    try:
        text.encode()  # bytes that are not UTF-8 reach argv as lone surrogates, which no TOML file can hold
        if get_origin(kind) is Literal:
            return next(choice for choice in get_args(kind) if str(choice) == text)
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError, StopIteration):
        raise ValueError(f"{flag} {ascii(text) if kind is str else text}: expected {expected(kind)}") from None


# ---- TOML: typed values, which must have the type of their field


def read_toml(path: Path, fields: dict[str, Field]) -> dict[str, Any]:
    """Reads {dotted key: value} of one file. Raises ValueError with the line of the mistake."""
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
    tables = {key[: dot.start()] for key in fields for dot in re.finditer(r"\.", key)}
    tables |= {key for key, field in fields.items() if is_open(field.kind)}

    def read(table: dict[str, Any], parents: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in table.items():
            names = (*parents, name)
            key = ".".join(names)
            try:
                kind = kind_of(key, fields)
                if kind is not None:
                    values[key] = typed(key, value, kind)
                elif key not in tables:
                    raise ValueError(f"{key}: unknown key; {nearest(key, [*fields, *tables])}")
                elif not isinstance(value, dict):
                    raise ValueError(f"{key} = {as_json(value)}: expected a table, [{key}]")
            except ValueError as error:
                raise ValueError(f"{path}:{line_of(text, names)}: {error}") from None
            if key in tables:
                values |= read(value, names)
        return values

    return read(tree, ())


def line_of(text: str, names: tuple[str, ...]) -> int:
    """The line where the value at `names` ends: the shortest beginning of the text that is TOML and has it."""
    lines = text.split("\n")
    for count in range(1, len(lines)):
        try:
            found: Any = tomllib.loads("\n".join(lines[:count]) + "\n")
        except tomllib.TOMLDecodeError:  # cut within a value of several lines
            continue
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        if found is not None:
            return count
    return len(lines)
