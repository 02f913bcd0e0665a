"""The chain from a model to the raw files that it came from, of what folders and a store say."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from logtrain.core.checksums import FILE as CHECKSUMS
from logtrain.core.checksums import is_unverified
from logtrain.core.lineage import standing_hash
from logtrain.core.store import Store, Version, parse
from logtrain.sharing.contents import kind_of, lineage_of
from logtrain.sharing.versions import flat, parents_of

MAX_DEPTH, MAX_LINES = 20, 10_000  # versions may name each other in a circle, and each several times
TOLD = (
    *("optim.lr", "optim.schedule", "trainer.epochs", "trainer.max_steps", "loader.seq_len", "loader.rows_per_step"),
    *("loader.documents_per_step", "lora.rank", "init", "seed", "seq_len", "format", "valid_fraction"),
)
"""The settings that a line has room for; `logtrain hub show` has all."""


class Ancestry:
    """The ancestors of things, found in a store by their hashes, and otherwise where their paths lead."""

    def __init__(self, store: Store):
        """Reads all versions of the store. Raises ValueError where one is damaged."""
        self.store = store
        self.versions = [version for name in store.names() for version in store.versions(name)]
        self.by_hash: dict[str, Version] = {}
        for version in self.versions:
            for facts in version["files"].values():
                self.by_hash.setdefault(facts["sha256"], version)

    def lines(self, path: str) -> list[str]:
        """The chain of a path or hub reference, a line each, deeper ancestors further in. Raises ValueError for what
        is not there.
        """
        if path.startswith("hub://"):
            version = self.store.find(parse(path))
            return bounded(self.of_version("", version, 0))
        if not Path(path).exists():
            raise ValueError(f"{path}: no such file or folder; a version of the store is hub://NAME:VERSION")
        return bounded(self.of("", path, standing_hash(Path(path)), 0))

    def of(self, role: str, path: str, sha256: str, depth: int) -> Iterator[str]:
        """The lines of a thing and its ancestors."""
        if version := self.by_hash.get(sha256):
            yield from self.of_version(role, version, depth)
        elif path.startswith("hub://"):
            try:
                yield from self.of_version(role, self.store.find(parse(path)), depth)
            except ValueError:
                yield line(role, f"{path} (not in {self.store.shown})", {}, depth)
        elif not os.path.exists(path):  # a path that others wrote may be none that a file can have
            yield line(role, f"{path} (not here)", {}, depth)
        else:
            folder = Path(path)
            changed = " (changed since)" if sha256 and standing_hash(folder) != sha256 else ""
            changed += f" (has no {CHECKSUMS})" if is_unverified(folder) else ""
            yield from self.told(role, f"{kind_of(folder)} {path}{changed}", lineage_of(folder), sha256, depth)

    def of_version(self, role: str, version: Version, depth: int) -> Iterator[str]:
        """The lines of a version and its ancestors."""
        what = f"{version['kind']} hub://{version['name']}:{version['version']}"
        hashes = {facts["sha256"] for facts in version["files"].values()}
        lineage = {**version["lineage"], "parents": parents_of(version)}
        yield from self.told(role, what, lineage, next(iter(hashes), ""), depth, hashes)

    def told(
        self, role: str, what: str, lineage: dict[str, Any], sha256: str, depth: int, hashes: set[str] | None = None
    ) -> Iterator[str]:
        """The lines of a thing, its evaluations and its ancestors."""
        yield line(role, what, lineage, depth)
        for scores in self.scores(hashes or {sha256}):
            yield f"{'  ' * (depth + 1)}scores: {scores}"
        for parent in lineage.get("parents", []) if depth < MAX_DEPTH else []:
            yield from self.of(parent["role"], parent["path"], parent["sha256"], depth + 1)

    def scores(self, hashes: set[str]) -> Iterator[str]:
        """The evaluations in the store of a model that has one of these hashes, with its scores."""
        for version in self.versions:
            if version["kind"] == "evaluation":
                for parent in parents_of(version):
                    if parent["role"] == "model" and parent["sha256"] and parent["sha256"] in hashes:
                        yield f"hub://{version['name']}:{version['version']} {scores_in(version)}"


def bounded(lines: Iterator[str]) -> list[str]:
    """The first MAX_LINES lines, and one that says so where there are more."""
    found = list(itertools.islice(lines, MAX_LINES + 1))
    return found if len(found) <= MAX_LINES else [*found[:MAX_LINES], f"more than {MAX_LINES:,} ancestors"]


def scores_in(version: Version) -> str:
    """The mean scores of an evaluation, as far as it has numbers."""
    found = flat(version["lineage"].get("facts"))
    means = {key: value for key, value in found.items() if key.endswith(".mean") and isinstance(value, int | float)}
    return ", ".join(f"{key.removeprefix('scores.').removesuffix('.mean')} {value:.3f}" for key, value in means.items())


def line(role: str, what: str, lineage: dict[str, Any], depth: int) -> str:
    """A thing on a line."""
    config = flat(lineage.get("config"))
    told = [f"{key} {config[key]}" for key in TOLD if key in config]
    told += [f"{key} {value}" for key, value in flat(lineage.get("facts")).items() if not key.startswith("scores")]
    if lineage.get("commit"):
        told.append(f"commit {str(lineage['commit'])[:12]}")
    return f"{'  ' * depth}{f'{role}: ' if role else ''}{what}{': ' + ', '.join(told) if told else ''}"
