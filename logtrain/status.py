"""Tells which runs there are, how far they are and how they fare.

It reads their files alone, on any machine that sees the folder:

    logtrain status                  all runs in runs/
    logtrain status runs/nlplog-8b   one run, with its last events and where its time went
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from logtrain.core.config import load, words_first
from logtrain.core.entry import run
from logtrain.core.kinds import Config
from logtrain.core.location import WITHOUT_WEIGHTS
from logtrain.core.printable import printable
from logtrain.core.run_folder import CONFIG
from logtrain.core.still import Still, note


@dataclass(frozen=True, kw_only=True)
class StatusConfig(Config):
    """Tell which runs there are, how far they are, and how they fare."""

    run: Annotated[tuple[str, ...], WITHOUT_WEIGHTS] = ("runs",)
    """Folders of runs, or of all runs; they may also stand first, without the flag."""
    json: bool = False
    """Print a JSON object for each run, a line each, instead of the table."""


def main(argv: list[str]) -> int:
    """Tell the status that the flags ask for; -> the exit status."""
    config = load(StatusConfig, words_first(argv, "--run"))
    from logtrain.observe.run_files import read_run
    from logtrain.observe.status import facts_of, print_details, print_table  # after the flags

    with Still():
        note("reading " + ", ".join(config.run))
        folders = [folder for name in config.run for folder in runs_in(Path(name))]
        found = [read_run(folder) for folder in folders]
    if config.json:
        for one in found:
            print(json.dumps(facts_of(one)))
    elif len(config.run) == 1 and folders == [Path(config.run[0])]:
        print_details(found[0])
    else:
        print_table(found)
    return 0


def runs_in(folder: Path) -> list[Path]:
    """The runs of a folder, or the folder itself where it is a run. Raises ValueError where there is none."""
    if (folder / CONFIG).is_file():
        return [folder]
    if not folder.is_dir():
        raise ValueError(f"{printable(str(folder), one_line=True)}: no such folder")
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not found:
        raise ValueError(f"{printable(str(folder), one_line=True)}: neither a run nor a folder of runs")
    return found


if __name__ == "__main__":
    run(main)
