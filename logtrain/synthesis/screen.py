"""The report of a synthesis on the terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from logtrain.core.printable import printable


def print_report(told: dict[str, Any], folder: Path) -> None:
    """Print what report.json holds, in short."""
    table = Table(title=f"{told['rows']['all']:,} rows of {told['jobs']['all']:,}: {told['ended']}")
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, title in (("rows", "rows, {}"), ("by_task", "task {}"), ("rejected", "rejected, {}")):
        for key, count in told[name].items():
            if key != "all":
                table.add_row(printable(title.format(key), one_line=True), f"{count:,}")
    for kind, count in told["failures"].items():
        table.add_row(f"not answered, {kind}", f"{count:,}")
    tokens, uncertain = (sum(told[name].values()) for name in ("tokens", "uncertain_tokens"))
    table.add_row("tokens", f"{tokens:,}" + (f" and at most {uncertain:,}" if uncertain else ""))
    table.add_row("dollars", f"{told['dollars']:,.4f}")
    Console().print(table)
    print(
        f"{folder}: train.jsonl, valid.jsonl, valid_systems.jsonl; report.json has all counts, rejected.jsonl the rest"
    )
