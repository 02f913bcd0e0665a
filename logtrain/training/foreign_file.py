"""A file of settings that another trainer reads: JSON or YAML, of whose trainer it is, and its values by the names that
LLaMA-Factory and transformers have for them. What the keys mean is in foreign_keys.toml.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logtrain.core.untrusted import MAX_DEPTH, check_depth, nearest, parse_int, read_bytes, shown

MAX_BYTES = 1 << 18  # of a file of settings; YAML of this size takes two seconds to read
KEYS = tomllib.loads((Path(__file__).parent / "foreign_keys.toml").read_text(encoding="utf-8"))
HOSTED, LLAMAFACTORY, AXOLOTL = "hosted", "llamafactory", "axolotl"
OFF = (None, False, 0, "", "none", "no", "false", [], {})


@dataclass(frozen=True)
class Given:
    """The settings of a file. Its methods give them with their types, and raise ValueError, by the name that the file
    has for a setting, for a value of another one.
    """

    file: Path
    """The file."""
    trainer: str
    """HOSTED, LLAMAFACTORY or AXOLOTL."""
    values: dict[str, Any]
    """The value of each setting that counts here, by LLaMA-Factory's name, and the trainer's defaults."""
    called: dict[str, str]
    """The file's name for each setting that it has, of those in `values`."""
    unused: dict[str, str]
    """Why a setting of the file has no effect here, by the file's name; `without_effect` adds to it."""

    def error(self, key: str, rule: str) -> ValueError:
        """A mistake in a setting, to be raised."""
        return ValueError(f"{self.file}: {self.called.get(key, key)} = {shown(self.values.get(key))}: {rule}")

    def number(self, key: str) -> float | None:
        """A number, also one that is written as a text: YAML 1.1 takes 1e-5 for a text."""
        value = self.values.get(key)
        if value is None:
            return None
        try:
            if isinstance(value, bool) or not math.isfinite(number := float(value)):
                raise ValueError
            return number
        except (TypeError, ValueError, OverflowError):
            raise self.error(key, "expected a number") from None

    def integer(self, key: str) -> int | None:
        """A number that is whole."""
        value = self.number(key)
        if value is not None and (abs(value) > 2**53 or value != int(value)):
            raise self.error(key, "expected a whole number")
        return None if value is None else int(value)

    def flag(self, key: str) -> bool | None:
        """True or false, also as texts."""
        value = self.values.get(key)
        if value is None or isinstance(value, bool):
            return value
        if str(value).lower() not in ("true", "false"):
            raise self.error(key, "expected true or false")
        return str(value).lower() == "true"

    def text(self, key: str) -> str | None:
        """A text; YAML 1.1 takes `no` for false, and here it is a text again."""
        value = self.values.get(key)
        if isinstance(value, bool):
            return "yes" if value else "no"
        if value is not None and not isinstance(value, str):
            raise self.error(key, "expected a string")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts, also as one text with commas."""
        value = self.values.get(key)
        items = value.split(",") if isinstance(value, str) else value or []
        if not (isinstance(items, list) and all(isinstance(item, str) for item in items)):
            raise self.error(key, "expected a string or a list of strings")
        return [item.strip() for item in items]

    def tables(self, key: str) -> list[dict[str, Any]]:
        """The tables of a list that has some."""
        value = self.values.get(key)
        return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []

    def without_effect(self, key: str, why: str) -> None:
        """Note that a setting has no effect, if the file has it."""
        if key in self.called:
            self.unused[self.called[key]] = why


def read_given(file: Path, ignore: tuple[str, ...] = ()) -> Given:
    """The settings in a file, without those named in `ignore`. Raises ValueError for a file that is neither JSON nor
    YAML, or holds no table, and for keys that no trainer here has, or that have no like here and are turned on.
    """
    found = read_table(file)
    for key in ignore:
        if key not in found:
            raise ValueError(f"ignore: {file} has no {key}; its keys are {', '.join(found)}")
    found = {key: value for key, value in found.items() if key not in ignore}
    trainer = trainer_of(found)
    names, unused, refused = tables_of(trainer)
    known = {**names, **unused, **refused}
    values = dict(KEYS[trainer].get("defaults", {}))
    called, without = {}, {}
    for key, value in found.items():
        if key not in known:
            near = nearest(key, known)
            hint = f"did you mean {near[0]}?" if near else "is it of another trainer?"
            title = KEYS[trainer]["title"]
            raise ValueError(f"{file}: {key}: no key of {title}; {hint} (--ignore {key} leaves it out)")
        if key in names and value is not None:
            values[names[key]] = value
            called[names[key]] = key
        elif key in unused and value is not None:
            without[key] = unused[key]
        elif key in refused and value not in OFF:
            raise ValueError(f"{file}: {key} = {shown(value)}: {refused[key]} (--ignore {key} leaves it out)")
    return Given(file, trainer, values, called, without)


def trainer_of(found: Mapping[str, Any]) -> str:
    """Whose settings these are: of the trainer that knows the most of them."""
    if found.keys() & (KEYS[HOSTED]["names"].keys() - KEYS[AXOLOTL]["names"].keys() - {"batch_size"}):
        return HOSTED
    return max((LLAMAFACTORY, AXOLOTL), key=lambda name: len(found.keys() & set().union(*tables_of(name))))


def tables_of(trainer: str) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """{its name: LLaMA-Factory's} of the keys that are read, and {its name: why} of those without effect, and of those
    that are refused.
    """
    keys = KEYS[trainer]
    names = {key: key for key in keys["read"].split()} | keys["names"]
    unused, refused = (
        {key: group["why"] for group in keys.get(kind, []) for key in group["keys"].split()}
        for kind in ("without_effect", "refused")
    )
    if trainer != HOSTED:
        return names, unused, refused
    of_all, unused, refused = tables_of(LLAMAFACTORY)
    return (
        of_all | {key: name for key, name in names.items() if name not in unused},
        unused | {key: unused[name] for key, name in names.items() if name in unused},
        refused,
    )


def read_table(file: Path) -> dict[str, Any]:
    """The object that a JSON or YAML file holds. Raises ValueError where it holds anything else, or a key twice."""
    text = read_bytes(file, MAX_BYTES).decode("utf-8-sig", errors="surrogateescape")
    if not text.isprintable() and not text.replace("\n", "").replace("\t", "").replace("\r", "").isprintable():
        raise ValueError(f"{file}: holds characters that no text has")
    try:
        facts = from_yaml(text) if file.suffix.lower() in (".yaml", ".yml") else from_json(text)
        check_depth("its values", facts, "settings")
    except RecursionError:
        raise ValueError(f"{file}: lists and tables within each other too deep to be settings") from None
    except ValueError as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(facts, dict) or not all(isinstance(key, str) for key in facts):
        raise ValueError(f'{file}: expected a table of settings, as in {{"learning_rate": 1e-5}}')
    return facts


def from_json(text: str) -> object:
    """The value of a JSON text."""
    try:
        facts = json.loads(text, object_pairs_hook=table, parse_int=parse_int)
        json.dumps(facts, ensure_ascii=False).encode()  # raises for half a surrogate pair, which is no text
        return facts
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); a YAML file is named .yaml or .yml") from None


def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The table of its keys and values. Raises ValueError for a key that is there twice."""
    found = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key}: there twice; which one counts?")
        found[key] = value
    return found


def from_yaml(text: str) -> object:
    """The value of a YAML text, of plain values alone: no tags that make objects, and no aliases, of which a few lines
    can stand for a table of any size.
    """
    try:
        import yaml
    except ImportError:
        raise ValueError("reading YAML needs PyYAML: pip install 'logtrain[yaml]'") from None
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"line {event.start_mark.line + 1}: *{event.anchor}: write the value itself there")
            if depth > MAX_DEPTH:
                raise ValueError("lists and tables within each other too deep to be settings")
        root = yaml.compose(text, yaml.SafeLoader)
        if isinstance(root, yaml.MappingNode):
            table([(key.value, None) for key, _ in root.value if isinstance(key, yaml.ScalarNode)])
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({error})") from None
