"""The status of runs for the terminal: a table of several, the details of one."""

import time
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from logtrain.core.printable import printable
from logtrain.observe.goodput import account
from logtrain.observe.run_files import RunFiles, is_number
from logtrain.observe.state import ago, state_of

COLORS = {"running": "green", "finished": "bold", "stopped": "yellow", "silent": "red", "failed": "red"}
SHOWN = 5  # events of one run
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
    """A line for each run."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("run", "state", "step", "loss", "held out", "tokens/s", "health", "host"):
        table.add_column(heading, overflow="fold")
    for run in runs:
        state, last = state_of(run), run.last
        held_out = next((records[-1].get("valid_loss") for records in run.validations.values()), None)
        host = run.attempts[-1].host if run.attempts else "-"
        cells = [run.name, state.told, state.progress, figure(last.get("loss"), ".4f"), figure(held_out, ".4f")]
        cells += [figure(last.get("tokens_per_second"), ",.0f"), health(run), host]
        texts = [Text(printable(cell, one_line=True)) for cell in cells]
        texts[1].stylize(COLORS.get(state.word, ""))
        table.add_row(*texts)
    Console(highlight=False).print(table)
    for run in runs:
        for problem in run.problems:
            print(printable(f"{run.name}: problem: {problem}", one_line=True))


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
