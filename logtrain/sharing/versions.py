"""Versions pushed into a store, pulled from it, compared and swept."""

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from logtrain.core import still
from logtrain.core.atomic import new_folder
from logtrain.core.cache import Count, fetch
from logtrain.core.checksums import check_folder
from logtrain.core.lineage import parent_of
from logtrain.core.store import PARTIAL, FileFacts, Reference, Store, Version, object_of
from logtrain.sharing.contents import kind_of, lineage_of

SILENCE = 5.0  # seconds between two lines about a long work


def push(store: Store, name: str, path: Path, note: str = "", parents: tuple[str, ...] = ()) -> tuple[Version, bool]:
    """Store a folder or file as the next version of `name`; -> the version, and whether it is new: where the newest one
    has the same files, that is it. `parents`: paths or references it was made from, beside what its files say. Raises
    ValueError.
    """
    files = {path.name: path} if path.is_file() else files_in(path)
    if not files:
        raise ValueError(f"{path}: no such file or folder, or nothing in it")
    check_folder(path)
    lineage = lineage_of(path)
    lineage["parents"] = [*lineage["parents"], *(parent_of("parent", each) for each in parents)]
    facts: dict[str, FileFacts] = {}
    spoken = time.monotonic()
    for inner, file in files.items():
        if time.monotonic() - spoken > SILENCE:
            print(f"storing {file}", flush=True)
            spoken = time.monotonic()
        facts[inner] = store.put(file)
    if files_in(path).keys() != files.keys() and not path.is_file():
        raise ValueError(f"{path}: changed while it was stored; push it again")
    newest = store.newest(name)
    if newest is not None and newest["files"] == facts:
        return newest, False
    created = time.strftime("%Y-%m-%d %H:%M:%S %z")
    version = Version(
        name=name,
        version=0,
        kind=kind_of(path),
        created=created,
        note=note,
        files=facts,
        lineage=lineage,
        writer=secrets.token_hex(16),
    )
    return {**version, "version": store.add(version)}, True


def files_in(folder: Path) -> dict[str, Path]:
    """The files below a folder by their paths in it, but for hidden ones. Raises ValueError for a link or a device."""
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(parent, name)
            if not name.startswith("."):
                if not file.is_file():
                    raise ValueError(f"{file}: not a regular file")
                found[file.relative_to(folder).as_posix()] = file
    return found


def pull(store: Store, reference: Reference, output: Path) -> Version:
    """Write a version into the folder `output`, which appears whole or not at all. Raises ValueError where bytes are
    not those that were stored.
    """
    version = store.find(reference)
    reference = reference._replace(version=version["version"])
    with new_folder(output) as aside:
        for file in store.files_of(reference):
            target = aside / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            still.note(f"fetching {file.name}")
            fetch(store.root, file, target, Count(), store.system)
    return version


def differences(a: Version, b: Version) -> list[str]:
    """What differs between two versions, a line each: files, settings, facts and parents."""
    lines = changes("file", a["files"], b["files"], lambda facts: f"{facts['bytes']:,} bytes {facts['sha256'][:12]}")
    for part in ("config", "facts"):
        lines += changes(part.removesuffix("s"), flat(a["lineage"].get(part)), flat(b["lineage"].get(part)), str)
    was, now = ({f"{each['role']} {each['path']}": each["sha256"][:12] for each in parents_of(of)} for of in (a, b))
    return lines + changes("parent", was, now, str)


def changes(what: str, a: dict[str, Any], b: dict[str, Any], shown: Callable[[Any], str]) -> list[str]:
    """A line for each key that only one of two has, or for which they have different values."""
    lines = []
    for key in sorted(a.keys() | b.keys()):
        if key not in b:
            lines.append(f"- {what} {key}: {shown(a[key])}")
        elif key not in a:
            lines.append(f"+ {what} {key}: {shown(b[key])}")
        elif a[key] != b[key]:
            lines.append(f"~ {what} {key}: {shown(a[key])} -> {shown(b[key])}")
    return lines


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Objects within objects by dotted keys."""
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value} if prefix else {}
    return {key: item for name, inner in value.items() for key, item in flat(inner, f"{prefix}{name}.").items()}


def parents_of(version: Version) -> list[dict[str, str]]:
    """The parents that a version names, as far as they have the form of parents: others may have written it."""
    found = version["lineage"].get("parents")
    keys = ("role", "path", "sha256")
    parents = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    return [each for each in parents if all(isinstance(each.get(key), str) for key in keys)]


class Swept(NamedTuple):
    """What `sweep` found."""

    versions: int
    objects: int
    bytes: int
    removed: int
    removed_bytes: int


def sweep(store: Store, hours: float) -> Swept:
    """Remove bytes that no version names and that were stored more than `hours` ago: a push that is under way stores
    them first. Raises ValueError where a version is damaged, or bytes that one names are missing or of another size.
    """
    there = store.listed("objects")  # before the versions: what is stored from now on is not looked at
    named: dict[str, int] = {}
    count = 0
    for name in store.names():
        for version in store.versions(name):
            count += 1
            for path, facts in version["files"].items():
                inner = object_of(facts["sha256"]).removeprefix("objects/")
                info = there.get(inner) or store.listed("objects").get(inner)
                if info is None or info.get("size") != facts["bytes"]:
                    what = "are missing" if info is None else f"are {info.get('size')} instead of {facts['bytes']}"
                    raise ValueError(
                        f"{store.shown}: the bytes of {path} in hub://{name}:{version['version']} {what}; push that "
                        f"folder again, or remove the version: logtrain hub gc {name}:{version['version']}"
                    )
                named[inner] = facts["bytes"]
    removed = [inner for inner in there if inner not in named and age(store, inner) > hours * 3600]
    for inner in removed:
        store.delete(f"objects/{inner}")
    freed = sum(there[inner].get("size") or 0 for inner in removed)
    return Swept(count, len(named), sum(named.values()), len(removed), freed)


def age(store: Store, inner: str) -> float:
    """Seconds since an object was stored, or begun to be."""
    if store.is_local:
        path = Path(store.root, "objects", inner)
        return time.time() - path.stat().st_mtime if path.exists() else 0.0
    assert PARTIAL not in inner
    return store.age(f"objects/{inner}") or 0.0
