"""The settings of a config that are paths, and may be URIs: `Annotated[str, FOLDER]` says which, and to what."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from logtrain.core.cache import fetched
from logtrain.core.location import (
    FILE,
    MODEL,
    ORIGINS,
    OUTPUT,
    RUNS,
    TOKENIZER,
    URI,
    Place,
    is_hub_id,
    is_read,
    shown,
)
from logtrain.core.mirror import mirrored
from logtrain.core.store import Store, parse

T = TypeVar("T")


def places_of(cls: Any) -> dict[str, Place]:
    """What each field of a config leads to that is a path and says so."""
    kinds = get_type_hints(cls, include_extras=True)
    marks = {field.name: getattr(kinds[field.name], "__metadata__", ()) for field in dataclasses.fields(cls)}
    return {name: mark for name, found in marks.items() for mark in found if isinstance(mark, Place)}


def each(value: str | tuple[str, ...], change: Callable[[str], str]) -> str | tuple[str, ...]:
    """A setting with every text of it changed."""
    return change(value) if isinstance(value, str) else tuple(map(change, value))


def located(config: T, writes: bool) -> T:
    """The config with paths of this machine in the place of URIs. `writes`: whether those that are written are meant,
    too. Raises ValueError where something cannot be had.
    """

    def path_of(place: Place) -> Callable[[str], str]:
        return lambda text: located_path(text, place, getattr(config, "name", ""), writes)

    changes = {name: each(getattr(config, name), path_of(place)) for name, place in places_of(type(config)).items()}
    changes = {name: value for name, value in changes.items() if value != getattr(config, name)}
    return dataclasses.replace(config, **changes) if changes else config  # type: ignore[type-var]


def located_path(text: str, place: Place, name: str, writes: bool) -> str:
    """The path of this machine for a setting, which may be PATH or NAME=PATH. `name`: that of a run."""
    found = URI.fullmatch(text)
    if not found and place in (MODEL, TOKENIZER) and is_hub_id(path := text.rpartition("=")[2]):
        raise ValueError(f"{path}: no such folder; a model of the Hugging Face hub is hf://{path}")
    is_written = place in (OUTPUT, RUNS)
    if not found or (is_written and not writes):
        return text
    uri = found["uri"]
    if found["scheme"] == "file":
        path = uri.removeprefix("file://")
    elif place is RUNS:
        path = str(mirrored(f"{uri.rstrip('/')}/{name}").parent)
        ORIGINS[path] = shown(uri)
    elif found["scheme"] == "hub":
        store, reference = Store(), parse(uri)
        number = store.find(reference)["version"]
        uri = f"hub://{reference.name}:{number}{'/' * bool(reference.path)}{reference.path}"
        files = store.files_of(reference._replace(version=number))
        if is_written:
            raise ValueError(f"{uri}: write a folder, then logtrain hub push {reference.name} FOLDER")
        if place is FILE and len(files) > 1:
            raise ValueError(f"{uri}: has {len(files)} files; name one, as {uri}/{files[0].name}")
        path = str(fetched(uri, place, [file for file in files if is_read(file.name, place, set())], store.system))
        ORIGINS[path] = uri
    else:
        path = str(mirrored(uri) if is_written else fetched(uri, place))
        ORIGINS[path] = shown(uri)
    return path if found["label"] is None else f"{found['label']}={path}"
