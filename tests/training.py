"""Runs of the training program in this process, for tests: the whole of it, from flags to exit status."""

import json
from pathlib import Path

from logtrain import cpt


def train(flags: list[str]) -> int:
    """`python -m logtrain.cpt FLAGS` without the process; -> exit status."""
    return cpt.main(flags)


def records(run: Path, kind: str = "loss") -> list[dict]:
    """The logged steps of a run; kind = "valid_loss" for its validations."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if kind in record]
