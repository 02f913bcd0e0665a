"""Writes what there is to see of one or several runs as a page.

    logtrain report runs/A runs/B

The page is one file without scripts; with several runs they are laid over one another. Beside it is a folder with every
chart as a PNG. A run writes its own at its validations, from its second minute on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from logtrain.core.config import load, words_first
from logtrain.core.entry import run
from logtrain.core.kinds import Config
from logtrain.core.location import WITHOUT_WEIGHTS
from logtrain.core.printable import printable
from logtrain.core.still import Still, note


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """Write a page of one or several runs: losses, rates, system, events, time and cost, settings."""

    run: Annotated[tuple[str, ...], WITHOUT_WEIGHTS]
    """Folders of the runs; they may also stand first, without the flag."""
    output: str = ""
    """The HTML file to write. By default report.html in the folder of the only run, or in the working folder."""
    pictures: bool = True
    """Write every chart as a PNG, too, into a folder beside the page that has its name."""


def main(argv: list[str]) -> int:
    """Write the report that the flags ask for; -> the exit status."""
    config = load(ReportConfig, words_first(argv, "--run"))
    with Still():
        return report(config)


def report(config: ReportConfig) -> int:
    """Write the report; -> the exit status."""
    from logtrain.observe.page import write_report  # after the flags: --help needs no matplotlib
    from logtrain.observe.run_files import read_run

    note("reading " + ", ".join(config.run))
    runs = [read_run(Path(folder)) for folder in config.run]
    output = Path(config.output or (runs[0].folder / "report.html" if len(runs) == 1 else "report.html"))
    if output.suffix != ".html":
        raise ValueError(f"output = {config.output!r}: expected the name of an HTML file (*.html)")
    note(f"drawing {output}")
    write_report(runs, output, output.with_suffix("") if config.pictures else None)
    for found in runs:
        for problem in found.problems:
            print(printable(f"{found.name}: {problem}", one_line=True))
    print(f"{printable(str(output), one_line=True)}: the report of {', '.join(found.name for found in runs)}")
    return 0


if __name__ == "__main__":
    run(main)
