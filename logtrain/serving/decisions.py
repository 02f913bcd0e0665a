"""What reviewers have decided about the rows of a file, beside it: FILE.reviews.jsonl, a decision a line, to which is
only added. Of a reviewer's decisions about a row the last one counts.

A decision is on the disk (fsync) before the page says that it is saved. Several programs may add to one file at once. A
line that a kill has torn is ignored; a decision about a row that has changed since does not count, and is told.
"""

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from io import FileIO
from itertools import combinations
from pathlib import Path
from typing import Any

from logtrain.core.atomic import sync
from logtrain.core.lock import flock
from logtrain.core.sealed_lines import add, mend_end, parsed, read_sealed_lines
from logtrain.evaluation.agreement import agreement

VERDICTS = ("accept", "edit", "reject", "open")
"""open: taken back."""
KEPT = ("accept", "edit")


@dataclass(frozen=True)
class Decision:
    """Of one reviewer about one row."""

    row: int
    """from 0"""
    row_sha256: str
    """of the row"""
    reviewer: str
    verdict: str
    edits: dict[str, str] = field(default_factory=dict)
    """new texts by their paths"""
    note: str = ""
    time: str = ""


class Decisions:
    """All decisions about a file's rows. by: {reviewer: {row: its decision}}. num_stale: decisions about rows that have
    changed since. torn: the line that was torn, 0 for none.
    """

    def __init__(self, file: Path, hashes: Sequence[str]):
        """Reads those that are there. `hashes`: of the rows. Raises ValueError for a line that has changed."""
        self.path = file.with_name(f"{file.name}.reviews.jsonl")
        self.by: dict[str, dict[int, Decision]] = {}
        self.num_stale = 0
        self.torn = 0
        for number, facts in read_sealed_lines(self.path, "and the decision is lost", self.note_torn):
            decision = parsed(Decision, facts, f"{self.path} line {number}")
            if 0 <= decision.row < len(hashes) and decision.row_sha256 == hashes[decision.row]:
                self.note(decision)
            else:
                self.num_stale += 1

    def note_torn(self, number: int) -> None:
        """Remember a line that was torn."""
        self.torn = number

    def doubts(self) -> list[str]:
        """What in the file does not count, in sentences."""
        found = []
        if self.num_stale:
            found.append(f"{self.num_stale:,} decisions are about rows that have changed since, and do not count")
        if self.torn:
            found.append(f"{self.path} line {self.torn}: torn, by a kill or since; it does not count")
        return found

    def note(self, decision: Decision) -> None:
        """Let a decision count."""
        mine = self.by.setdefault(decision.reviewer, {})
        mine.pop(decision.row, None)  # so that the last one is the last
        if decision.verdict != "open":
            mine[decision.row] = decision

    def add(self, decision: Decision) -> None:
        """Write a decision, which is on the disk then. Raises OSError."""
        facts: dict[str, Any] = asdict(decision) | {"time": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        is_new = not os.path.lexists(self.path)
        with FileIO(self.path, "a+") as stream:
            flock(stream, wait=True)
            mend_end(stream)
            add(stream, facts, is_durable=True)
        if is_new:
            sync(self.path.parent)
        self.note(decision)

    def summary(self, num_rows: int) -> dict[str, Any]:
        """Counts of each reviewer, and how far each two agree: on accept, edit and reject, and on what is kept."""
        reviewers = {
            name: {**dict.fromkeys(VERDICTS[:3], 0), **Counter(one.verdict for one in mine.values())}
            for name, mine in sorted(self.by.items())
        }
        pairs = []
        for first, second in combinations(reviewers, 2):
            both = sorted(self.by[first].keys() & self.by[second].keys())
            a, b = ([self.by[name][row].verdict for row in both] for name in (first, second))
            pairs.append(
                {
                    "reviewers": [first, second],
                    "verdict": agreement(a, b)._asdict(),
                    "kept": agreement([str(one in KEPT) for one in a], [str(one in KEPT) for one in b])._asdict(),
                    "differ": [row for row, x, y in zip(both, a, b, strict=True) if x != y],
                }
            )
        return {
            "rows": num_rows,
            "reviewers": reviewers,
            "pairs": pairs,
            "stale": self.num_stale,
            "doubts": self.doubts(),
        }

    def kept(self) -> dict[int, dict[str, str]]:
        """{row: its edits} of the rows that somebody keeps and nobody rejects; of two edits the later one counts."""
        found: dict[int, Decision] = {}
        every = [one for mine in self.by.values() for one in mine.values()]
        rejected = {one.row for one in every if one.verdict == "reject"}
        for one in sorted(every, key=lambda one: (one.verdict == "edit", one.time)):
            if one.row not in rejected:
                found[one.row] = one
        return {row: found[row].edits if found[row].verdict == "edit" else {} for row in sorted(found)}
