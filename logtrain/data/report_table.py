"""The report of a prepared folder as people read it: on a terminal in tables, elsewhere in aligned columns."""

import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from logtrain.core.printable import printable
from logtrain.data.account import CaseCounts
from logtrain.data.held_out import HeldOut
from logtrain.data.report import Counts, Report, summed

MAX_BAD_ROWS_SHOWN = 10
MAX_DOMAINS_SHOWN = 30
MAX_GROUPS_SHOWN = 10
MAX_GROUP_CHARS = 80


def print_report(report: Report) -> None:
    """Print a report to stdout."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    seq_len = next(iter(report.packed.values())).seq_len
    console.print(documents_table(report, seq_len))
    chats = report.conversations
    what = "documents" if chats is None else "conversations"
    rows = report.rows
    console.print(f"rows read: {rows.read:,}, of them {rows.good:,} {what} and {rows.bad:,} bad rows")
    if report.lost_chars:
        console.print(f"lost, for the tokenizer cannot represent them: {report.lost_chars:,} characters")
    if chats is not None:
        console.print(conversations_table(chats))
    for bad in report.bad_rows[:MAX_BAD_ROWS_SHOWN]:
        console.print(Text(printable(f"  {bad.path} row {bad.row}: {bad.reason}", one_line=True)))
    if report.held_out.documents or report.held_out.unseen:
        for line in held_out_lines(report.held_out, report.groups):
            console.print(Text(printable(line, one_line=True)))
    for name, packed in report.packed.items():
        console.print(f"{name}: {packed.rows:,} packed rows of {seq_len:,} tokens, {packed.fill:.2%} full")


def held_out_lines(held_out: HeldOut, groups: list[str]) -> list[str]:
    """How the validation split came to be, and how far it is of its own."""
    twins = "with a near-twin in training (Jaccard index of 0.8 or more, estimated)"
    by_text = f"{held_out.documents:,} documents, {held_out.near_twins:,} of them {twins}"
    lines = [f"held out: {by_text}"]
    if groups:
        lines = [
            f"valid: {held_out.unseen:,} documents of held-out groups, {held_out.unseen_near_twins:,} of them {twins}",
            f"valid_seen: of the other groups {by_text}",
        ]
    if held_out.returned:
        lines.append(f"trained on for their near-twins are: {held_out.returned:,} documents chosen to be held out")
    if held_out.is_least:
        lines.append("valid_fraction would have held out none: these have the lowest hash")
    lines += [f"  held-out group: {group[:MAX_GROUP_CHARS]}" for group in groups[:MAX_GROUPS_SHOWN]]
    if len(groups) > MAX_GROUPS_SHOWN:
        lines.append(f"  and {len(groups) - MAX_GROUPS_SHOWN:,} others, all in report.json")
    return lines


def documents_table(report: Report, seq_len: int) -> Table:
    """Documents by domain, the largest first, and by split."""
    table = table_of("domain", "documents", "duplicates", "twins", f"over {seq_len:,} tokens", "tokens", "targets")
    of_domains = {name: Counts(*summed(by_split.values())) for name, by_split in report.domains.items()}
    largest_first = sorted(of_domains.items(), key=lambda item: -item[1].tokens)
    for name, counts in largest_first[:MAX_DOMAINS_SHOWN]:
        add_row(table, name, counts)
    if others := [counts for _, counts in largest_first[MAX_DOMAINS_SHOWN:]]:
        add_row(table, f"({len(others):,} others)", summed(others))
    table.add_section()
    for name, counts in report.splits.items():
        add_row(table, name, counts)
    add_row(table, "total", report.total, style="bold")
    return table


def conversations_table(cases: dict[str, CaseCounts]) -> Table:
    """Conversations by what became of them."""
    table = table_of("conversations", "rows", "tokens read", "targets read", "documents", "tokens", "targets")
    for case, counts in cases.items():
        if case == "total":
            table.add_section()
        add_row(table, case, counts)
    return table


def table_of(first: str, *columns: str) -> Table:
    """An empty table; all columns but the first hold numbers."""
    table = Table(first, box=box.ROUNDED if sys.stdout.isatty() else None)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def add_row(table: Table, name: str, numbers: Iterable[int], style: str | None = None) -> None:
    """Add a row of numbers with their name."""
    table.add_row(Text(printable(name, one_line=True)), *(f"{number:,}" for number in numbers), style=style)
