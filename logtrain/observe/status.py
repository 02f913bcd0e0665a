"""The status of runs for the terminal: a table of several, the details of one."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from logtrain.core.printable import printable, shortened
from logtrain.observe.goodput import account
from logtrain.observe.run_files import RunFiles, is_number
from logtrain.observe.state import ago, state_of

COLORS = {"running": "green", "finished": "bold", "stopped": "yellow", "silent": "red", "failed": "red"}
SHOWN = 5  # events of one run
LEAST = ("host", "tokens/s", "held out")  # columns, in the order in which they are left out where there is no room
WORDS = ("run", "state", "health")  # columns that are cut short where there is still no room: the longest first
NOT_FOLDED = 1 << 16  # cells
RECENT = 3600.0  # seconds in which an event is part of how a run fares


def facts_of(run: RunFiles) -> dict[str, Any]:
    """The status of a run as JSON."""
    state, last = state_of(run), run.last
    valid = {name: records[-1].get("valid_loss") for name, records in run.validations.items()}
    spent = account(run.attempts) if run.attempts else None
    return {
        "run": str(run.folder),
        "state": state.word,
        "told": state.told,
        "step": last.get("step", 0),
        "total_steps": run.total_steps,
        "eta_seconds": last.get("eta_seconds"),
        "loss": last.get("loss"),
        "valid_loss": valid,
        "tokens_per_second": last.get("tokens_per_second"),
        "goodput": spent.goodput if spent else None,
        "device_hours": spent.device_hours if spent else None,
        "dollars": spent.dollars if spent and spent.price else None,
        "host": run.attempts[-1].host if run.attempts else None,
        "events": run.events[-SHOWN:],
        "problems": run.problems,
    }


def print_table(runs: Sequence[RunFiles]) -> None:
    """A line for each run, however narrow the terminal is; elsewhere nothing is left out."""
    console = Console(width=None if sys.stdout.isatty() else NOT_FOLDED, highlight=False)
    console.print(fitting([cells_of(run) for run in runs], console))
    for run in runs:
        for problem in run.problems:
            print(printable(f"{run.name}: problem: {problem}", one_line=True))


def cells_of(run: RunFiles) -> dict[str, Text]:
    """What the table says of a run, by heading."""
    state, last = state_of(run), run.last
    held_out = next((records[-1].get("valid_loss") for records in run.validations.values()), None)
    cells = {
        "run": run.name,
        "state": state.told,
        "step": state.progress,
        "loss": figure(last.get("loss"), ".4f"),
        "held out": figure(held_out, ".4f"),
        "tokens/s": figure(last.get("tokens_per_second"), ",.0f"),
        "health": health(run),
        "host": run.attempts[-1].host if run.attempts else "-",
    }
    colors = {"state": COLORS.get(state.word, "")}
    return {name: Text(printable(cell, one_line=True), colors.get(name, "")) for name, cell in cells.items()}


def fitting(lines: Sequence[Mapping[str, Text]], console: Console) -> Table:
    """The table of cells by heading, of as many columns as there is room for; then words become shorter, no figures."""
    kept, unbounded = list(lines[0]), console.options.update(width=NOT_FOLDED)

    def over() -> int:
        return console.measure(table_of(lines, kept), options=unbounded).maximum - console.width

    for least in LEAST:
        if over() > 0:
            kept.remove(least)
    widths = {name: max(line[name].cell_len for line in lines) for name in WORDS}
    for _ in range(over()):
        widths[max(widths, key=lambda name: widths[name])] -= 1
    for line in lines:
        line["run"].plain = shortened(line["run"].plain, max(1, widths["run"]))
        for name in ("state", "health"):
            line[name].truncate(max(1, widths[name]), overflow="ellipsis")
    return table_of(lines, kept)


def table_of(lines: Sequence[Mapping[str, Text]], headings: Sequence[str]) -> Table:
    """A table of some of the cells; none of them takes a second line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for line in lines:
        table.add_row(*(line[heading] for heading in headings))
    return table


def print_details(run: RunFiles) -> None:
    """All that is known of one run, in lines."""
    state, last = state_of(run), run.last
    lines = [f"{run.folder}: {state.told}, step {state.progress}"]
    if last:
        rate = figure(last.get("tokens_per_second"), ",.0f")
        lines.append(f"loss {figure(last.get('loss'), '.4f')}, {rate} tokens/s")
    for name, records in run.validations.items():
        losses = [r["valid_loss"] for r in records if is_number(r.get("valid_loss"))]
        if losses:
            told = f"{losses[0]:.4f} at first, {losses[-1]:.4f} now, best {min(losses):.4f}"
            lines.append(f"held out ({name}): {told}")
    lines += account(run.attempts).told() if run.attempts else []
    lines += [f"{when(event)}: {event.get('kind')}: {event.get('text')}" for event in run.events[-SHOWN:]]
    lines += [f"problem: {problem}" for problem in run.problems]
    for line in lines:
        print(printable(line, one_line=True))


def health(run: RunFiles) -> str:
    """The kinds of events of the last hour before the run was last heard of, with their number."""
    last = run.attempts[-1].last if run.attempts else time.time()
    kinds = [str(e.get("kind")) for e in run.events if is_number(e.get("time")) and e["time"] > last - RECENT]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "well"


def when(event: dict[str, Any]) -> str:
    """How long ago an event was, and at which step."""
    then = event.get("time")
    return f"step {event.get('step')}, {ago(max(0.0, time.time() - then)) if is_number(then) else '-'}"


def figure(value: Any, form: str) -> str:
    """A figure, or a dash where there is none."""
    return format(value, form) if is_number(value) else "-"
