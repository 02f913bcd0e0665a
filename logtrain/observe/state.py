"""What state a run is in, from its files alone: it runs, has ended, or is silent and was killed or is stuck."""

import time
from dataclasses import dataclass

from logtrain.observe.goodput import clock
from logtrain.observe.run_files import RunFiles, is_number

SILENT = 60.0  # seconds; a run that works is heard of every 10


@dataclass(frozen=True)
class State:
    """The state of a run."""

    word: str
    """running, silent, finished, stopped or failed."""
    told: str
    """The same in words, with times."""
    progress: str
    """The step of how many."""


def state_of(run: RunFiles, now: float | None = None) -> State:
    """The state of a run at the time `now`, in seconds since 1970."""
    now = time.time() if now is None else now
    step, total = run.last.get("step", 0), run.total_steps
    progress = f"{step:,} of {total:,}" if total else f"{step:,}"
    if not run.attempts:
        return State("unknown", "not begun, or without goodput.json", progress)
    last = run.attempts[-1]
    since = max(0.0, now - last.last)
    if last.ended:
        word = {"finished": "finished", "stopped on request": "stopped"}.get(last.ended, "failed")
        told = last.ended if word == "failed" else word
        return State(word, f"{told} {ago(since)}", progress)
    if since > SILENT:
        return State("silent", f"silent for {clock(since)}: killed, or stuck", progress)
    eta = run.last.get("eta_seconds")
    heard = run.last.get("time")
    left = f", {clock(max(0.0, eta - (now - heard if is_number(heard) else 0)))} left" if is_number(eta) else ""
    return State("running", f"running{left}", progress)


def ago(seconds: float) -> str:
    """How long ago something was."""
    return f"{clock(seconds)} ago" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days ago"
