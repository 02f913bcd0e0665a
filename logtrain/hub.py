"""Pushes, pulls and compares versions of data, models and results.

They are in a store, which is a plain folder, here or at a URI:

    logtrain hub push NAME PATH     the next version of NAME
    logtrain hub pull NAME:3 PATH   a version, verified by hash; without a number the newest
    logtrain hub list               what there is; logtrain hub list NAME its versions
    logtrain hub show NAME:3        a version: files, settings, parents
    logtrain hub diff NAME:2 NAME:3
    logtrain hub gc                 remove what no version names; logtrain hub gc NAME:2 removes that version, too

Wherever a setting is a path, hub://NAME:3 is that version. core/store.py says what lies where in a store.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.core.kinds import NONE_BY_DEFAULT, Config
from logtrain.core.printable import printable
from logtrain.core.still import Still
from logtrain.core.store import Store, Version, parse
from logtrain.core.units import size
from logtrain.sharing.versions import differences, pull, push, sweep

Verb = Literal["push", "pull", "list", "show", "diff", "gc"]
WORDS = {"push": 2, "pull": 2, "list": 1, "show": 1, "diff": 2, "gc": 1}  # the most that follow
NEEDS = {"push": 2, "pull": 2, "list": 0, "show": 1, "diff": 2, "gc": 0}


@dataclass(frozen=True, kw_only=True)
class HubConfig(Config):
    """Push, pull and look at versions of data, models and results."""

    verb: Verb
    """What to do; `logtrain hub push NAME PATH` is the same as --verb push --what NAME PATH."""
    what: Annotated[tuple[str, ...], NONE_BY_DEFAULT] = ()
    """NAME or NAME:VERSION, then for push and pull the folder or file, for diff the other version."""
    store: str = ""
    """Folder or URI of the store. Empty: that of LOGTRAIN_STORE, or ~/.logtrain/store."""
    note: str = ""
    """push: a line about the version."""
    parents: Annotated[tuple[str, ...], NONE_BY_DEFAULT] = ()
    """push: paths, or hub://NAME:VERSION, of what it was made from, beside what its files say."""
    hours: float = 24.0
    """gc: bytes that were stored within so many hours stay: a push that is under way may be about to name them."""

    def __post_init__(self):
        super().__post_init__()
        if not NEEDS[self.verb] <= len(self.what) <= WORDS[self.verb]:
            raise ValueError(f"hub {self.verb}: expected {WORDS[self.verb]} words after it, found {len(self.what)}")
        if self.hours < 0:
            raise ValueError(f"hours = {self.hours} must not be negative")


def main(argv: list[str]) -> int:
    """Do what the words say; -> the exit status."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    if words:
        argv = ["--verb", words[0], *(["--what", *words[1:]] if words[1:] else []), *argv[len(words) :]]
    config = load(HubConfig, argv)
    with Still():
        lines = done(config, Store(config.store))
    for line in lines:
        print(printable(line, one_line=True))
    return 0


def done(config: HubConfig, store: Store) -> list[str]:
    """Do what the config says; -> what there is to say."""
    what = config.what
    if config.verb == "push":
        if parse(what[0]).version or parse(what[0]).path:
            raise ValueError(f"{what[0]}: a version gets its number from the store; push {parse(what[0]).name}")
        version, is_new = push(store, parse(what[0]).name, Path(what[1]), config.note, config.parents)
        return [f"{called(version)}: {described(version)}{'' if is_new else '; it was there already'}"]
    if config.verb == "pull":
        version = pull(store, parse(what[0]), Path(what[1]))
        return [f"{called(version)}: {described(version)}, written to {what[1]}"]
    if config.verb == "list":
        names = [parse(what[0]).name] if what else store.names()
        every = [version for name in names for version in (store.versions(name) if what else newest(store, name))]
        return [f"{called(each):<24} {each['created'][:16]}  {described(each)}  {each['note']}" for each in every]
    if config.verb == "show":
        return json.dumps(store.find(parse(what[0])), indent=1).splitlines()
    if config.verb == "diff":
        a, b = (store.find(parse(each)) for each in what)
        return differences(a, b) or [f"{called(a)} and {called(b)} are the same"]
    removed = [store.find(parse(each)) for each in what]
    for version in removed:
        store.remove(version)
    found = sweep(store, config.hours)
    kept = f"{found.versions:,} versions name {found.objects:,} files of {size(found.bytes)}, all there"
    return [
        *(f"{called(version)}: removed" for version in removed),
        f"{kept}; removed {found.removed:,} of {size(found.removed_bytes)} that none names",
    ]


def newest(store: Store, name: str) -> list[Version]:
    """The newest version of a name, if there is one."""
    return store.versions(name)[-1:]


def called(version: Version) -> str:
    """A version as it is named wherever a path is."""
    return f"hub://{version['name']}:{version['version']}"


def described(version: Version) -> str:
    """A version in a few words."""
    sizes = [facts["bytes"] for facts in version["files"].values()]
    return f"{version['kind']}, {len(sizes):,} {'file' if len(sizes) == 1 else 'files'}, {size(sum(sizes))}"


if __name__ == "__main__":
    run(main)
