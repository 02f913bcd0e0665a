"""The kinds of values that a setting can have, and `Config`, the base of all configs, which holds every value to them.

A flag, a TOML file and Python all come through `Config`, so a value of another kind is the same error from each.
"""

import dataclasses
import functools
import json
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import tyro

ONE_OR_MANY = str | tuple[str, ...]
NONE_BY_DEFAULT = tyro.conf.arg(help_behavior_hint="(default: none)")  # what --help says of a list that may be empty


class Config:
    """Base of the configs, which are frozen dataclasses. `prefix`: what stands before a field's name in its dotted key,
    such as "optim.". A subclass with a `__post_init__` calls this one first.
    """

    prefix: ClassVar[str] = ""
    offers: ClassVar[tuple[str, ...]] = ()
    """Keys that are flags, a table's with a dot behind its name; (): all. Others are for TOML files alone."""

    def __init_subclass__(cls, prefix: str = "", **options: Any):
        super().__init_subclass__(**options)
        cls.prefix = prefix or cls.prefix

    def __post_init__(self):
        """Gives every value the type of its field: a list becomes a tuple, an integer a float where the field is one.
        Raises ValueError, which names the dotted key, for any other type and for a word that is no choice.
        """
        for name, kind in kinds_of(type(self)).items():
            value, key = getattr(self, name), f"{self.prefix}{name}"
            if dataclasses.is_dataclass(kind):
                if not (isinstance(kind, type) and isinstance(value, kind)):
                    raise ValueError(f"{key} = {shown(value)}: expected a {getattr(kind, '__name__', kind)}")
            elif is_open(kind):
                if not (isinstance(value, dict) and all(type(item) is str for item in value)):
                    raise ValueError(f"{key} = {shown(value)}: expected a dict with strings as keys")
                of_item = get_args(kind)[1]
                found = {item: held(f"{key}.{item}", given, of_item) for item, given in value.items()}
                object.__setattr__(self, name, found)
            else:
                object.__setattr__(self, name, held(key, value, kind))


@functools.cache
def kinds_of(cls: Any) -> dict[str, Any]:
    """{name: type} of the fields of a config."""
    kinds = get_type_hints(cls)
    return {field.name: kinds[field.name] for field in dataclasses.fields(cls)}


def held(key: str, value: Any, kind: Any) -> Any:
    """`value` in the type of its field, as `typed` gives it, with Python's words for the value in the error."""
    if not fits(value, kind):
        raise ValueError(f"{key} = {shown(value)}: expected {expected(kind)}")
    return typed(key, value, kind)


def shown(value: Any) -> str:
    """The beginning of what Python shows of a value, on one line."""
    return " ".join(repr(value)[:100].split())


def is_open(kind: Any) -> bool:
    """Whether a field is a table whose keys the user names; they are `<field>.<name>` in the flat dictionary."""
    return get_origin(kind) is dict


def expected(kind: Any) -> str:
    """The type of a field, in the words of an error."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(as_json, get_args(kind)))
    if kind == ONE_OR_MANY:
        return "a string or a list of strings"
    if get_origin(kind) is tuple:
        return f"a list, each item {expected(get_args(kind)[0])}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string"}[kind]


def as_json(value: Any) -> str:
    """A value nearly as the user wrote it: JSON is TOML for all but dates."""
    return json.dumps(value, ensure_ascii=False, default=str)


def typed(key: str, value: Any, kind: Any) -> Any:
    """`value` in the type of its field: a list becomes a tuple, an integer a float where the field is one. Raises
    ValueError for any other type.
    """
    if not fits(value, kind):
        raise ValueError(f"{key} = {as_json(value)}: expected {expected(kind)}")
    if get_origin(kind) is tuple:
        return tuple(typed(key, item, get_args(kind)[0]) for item in value)
    if kind == ONE_OR_MANY:
        return value if isinstance(value, str) else tuple(value)
    return float(value) if kind is float else value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value, of a TOML file or of Python, is of a field's type."""
    if get_origin(kind) is tuple:
        return type(value) in (list, tuple) and all(fits(item, get_args(kind)[0]) for item in value)
    if kind == ONE_OR_MANY:
        return type(value) is str or (type(value) in (list, tuple) and all(type(item) is str for item in value))
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if kind is float and type(value) is int:
        return abs(value) <= 2**53  # a float64 may not hold a greater one
    if kind is float:  # NumPy's float64 is one; NaN is neither too low nor too high
        return isinstance(value, float) and value == value
    return type(value) is kind  # True is an int
