"""Prints what a model, an adapter, prepared data or an evaluation came from.

    logtrain lineage MODEL

Each line is an ancestor, down to the raw files, with the settings that made it and, where the store has them, its
scores. An ancestor is found in the store by its hash, wherever it lay, and otherwise where its path leads.
"""

from dataclasses import dataclass

from logtrain.core.config import load, words_first
from logtrain.core.entry import run
from logtrain.core.kinds import Config
from logtrain.core.printable import printable
from logtrain.core.still import Still
from logtrain.core.store import Store
from logtrain.sharing.ancestry import Ancestry


@dataclass(frozen=True, kw_only=True)
class LineageConfig(Config):
    """Print the chain from the raw files to a model."""

    model: str
    """Folder, or hub://NAME:VERSION; `logtrain lineage MODEL` is the same as --model MODEL."""
    store: str = ""
    """Folder or URI of the store. Empty: that of LOGTRAIN_STORE, or ~/.logtrain/store."""


def main(argv: list[str]) -> int:
    """Print the chain; -> the exit status."""
    config = load(LineageConfig, words_first(argv, "--model"))
    with Still():
        lines = Ancestry(Store(config.store)).lines(config.model)
    for line in lines:
        print(printable(line, one_line=True))
    return 0


if __name__ == "__main__":
    run(main)
