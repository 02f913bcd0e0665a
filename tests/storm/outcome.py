"""What came of an attack."""

import re
import signal
from collections.abc import Sequence
from typing import NamedTuple

from tests.storm.execution import Ended
from tests.storm.ground import Ground
from tests.storm.stage import Stage

GOOD = ("equal", "told", "refused", "taken")
BAD = ("changed", "traceback", "hang", "memory", "status", "raw", "no path", "not resumed")
MOST_GIB = 2.0
CRASHES = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGFPE, -signal.SIGILL}
LOST = re.compile(r"metrics\.jsonl: (removed [\d,]+ lines that are damaged|some records|has no record)")
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")  # what would steer a terminal


class Outcome(NamedTuple):
    """One attack, and what came of it."""

    kind: str
    what: str
    """what was done, in a few words"""
    verdict: str
    """of GOOD or BAD"""
    detail: str = ""
    number: int = 1
    """how many attacks it were"""


def ended_well(ended: Ended, patience: float) -> str:
    """What is wrong with the way in which a command ended, whatever it did; "" where nothing is."""
    if "Traceback" in ended.said or "Fatal Python error" in ended.said or CRASHES & set(ended.statuses):
        return "traceback"
    if ended.seconds > patience:
        return "hang"
    if ended.peak_gib > MOST_GIB:
        return "memory"
    return "raw" if RAW.search(ended.said) else ""


def verdict_of(
    ground: Ground, stage: Stage, ended: Ended, patience: float, named: Sequence[str] = ("",)
) -> tuple[str, str]:
    """Of a stage that was run on something damaged: verdict and detail. `named`: words of which an error must have one,
    for it says where the damage is.
    """
    if wrong := ended_well(ended, patience):
        return wrong, last_line(ended)
    if ended.is_done:
        if ground.is_equal(stage):
            return "equal", ""
        different = ground.difference(stage)
        if different == "series" and LOST.search(ended.said):
            return "told", last_line(ended)
        if stage.tells and re.search(stage.tells, ended.said):
            return "told", last_line(ended)
        return "changed", different
    if ended.statuses[0] == 2 and 1 <= len(ended.errors) <= len(ended.statuses):
        first = ended.errors[0]
        return "refused" if any(word in first for word in named) else "no path", first
    return "status", f"{ended.statuses}: {last_line(ended)}"


def last_line(ended: Ended) -> str:
    lines = [line for line in ended.said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
