"""Of which run a record is, and in which of its files: every record says so itself, so that a whole file which lies in
the place of another one, of the same run or of another, is found.

    {"file": "events", "run": "3f2a9c1b7d20"}
"""

import contextlib
from pathlib import Path
from typing import Any

from logtrain.core.run_folder import CONFIG, identity_in
from logtrain.core.untrusted import named, read_bytes, read_own, sealed

FILE, RUN = "file", "run"
Origin = dict[str, str]


def origin(folder: Path, file: str) -> Origin:
    """What the records in a file of the run in `folder` say of themselves. `file`: what it holds, in a word. In a
    folder that is no run, or one of an older version, they name no run.
    """
    run = ""
    with contextlib.suppress(ValueError):
        run = identity_in(read_bytes(folder / CONFIG))
    return {FILE: file, **({RUN: run} if run else {})}


def strange(facts: dict[str, Any], wanted: Origin) -> str:
    """Where a record belongs, in words, if that is not `wanted`; "" for one of there, and for one that an older version
    wrote, which says nothing. What it says of that is taken out of `facts`.
    """
    found = {key: facts.pop(key) for key in (FILE, RUN) if key in facts}
    if all(found.get(key, value) == value for key, value in wanted.items()):
        return ""
    run = "" if found.get(RUN) == wanted.get(RUN) else f"run {named(found.get(RUN))}"
    return " of ".join(filter(None, (named(found.get(FILE)), run or "this run")))


def check_origin(where: str | Path, facts: dict[str, Any], wanted: Origin) -> dict[str, Any]:
    """Facts without what they say of their place. `where`: the file, and the line of it. Raises ValueError where that
    is another place.
    """
    if other := strange(facts, wanted):
        raise ValueError(f"{where}: another file lies in its place: {other}")
    return facts


def sealed_in(file: Path, kind: str, facts: dict[str, Any]) -> bytes:
    """Facts as the content of a file in a run's folder. `kind`: what the file holds, in a word."""
    return sealed(facts | origin(file.parent, kind))


def read_sealed_in(file: Path, kind: str) -> dict[str, Any]:
    """What `sealed_in` was given; what an older version wrote is taken as it is. Raises ValueError where it has changed
    since, or another file lies in its place.
    """
    return check_origin(file, read_own(file), origin(file.parent, kind))
