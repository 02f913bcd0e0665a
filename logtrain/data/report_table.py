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
OVER = Counts._fields.index("split_over_rows")


def print_report(report: Report) -> None:
    """Print a report to stdout."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    seq_len = next(iter(report.packed.values())).seq_len
    console.print(documents_table(report, seq_len))
    if report.conversations is not None and (line := lost_line(report.conversations, seq_len)):
        console.print(Text(line, style="bold red"))
    chats = report.conversations
    what = "documents" if chats is None else "conversations"
    rows = report.rows
    console.print(f"rows read: {rows.read:,}, of them {rows.good:,} {what} and {rows.bad:,} bad rows")
    if records := report.records["left_out"] and report.records:
        console.print(
            f"records of text files: {records['read']:,}, of which {records['left_out']:,} were left out, "
            f"beyond the first of each of {records['templates']:,} templates"
        )
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


def lost_line(cases: dict[str, CaseCounts], seq_len: int) -> str:
    """What long conversations have cost, in a line; "" where it is nothing."""
    total, cut, dropped = cases["total"], cases["cut"], cases["dropped"]
    if not total.lost > 0:
        return ""
    return (
        f"LOST: {total.lost:.1%} of the answers' tokens, for they do not fit into {seq_len:,}: of "
        f"{total.conversations:,} conversations {dropped.conversations:,} are left out, and {cut.conversations:,} "
        f"have a cut answer"
    )


def documents_table(report: Report, seq_len: int) -> Table:
    """Documents by domain, the largest first, and by split."""
    is_chat = report.conversations is not None  # none of which is longer than a row: the other table tells what was
    over = [] if is_chat else [f"over {seq_len:,} tokens"]
    table = table_of("domain", "documents", "duplicates", "twins", *over, "tokens", "targets")

    def add(name: str, counts: Iterable[int], style: str | None = None) -> None:
        add_row(table, name, [count for i, count in enumerate(counts) if not is_chat or i != OVER], style)

    of_domains = {name: Counts(*summed(by_split.values())) for name, by_split in report.domains.items()}
    largest_first = sorted(of_domains.items(), key=lambda item: -item[1].tokens)
    for name, counts in largest_first[:MAX_DOMAINS_SHOWN]:
        add(name, counts)
    if others := [counts for _, counts in largest_first[MAX_DOMAINS_SHOWN:]]:
        add(f"({len(others):,} others)", summed(others))
    table.add_section()
    for name, counts in report.splits.items():
        add(name, counts)
    add("total", report.total, style="bold")
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
