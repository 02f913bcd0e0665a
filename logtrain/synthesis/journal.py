"""What a synthesis has sent and got, on disk before it counts: answers.jsonl, an event a line, to which is only added.

    sent       a request, with the most tokens that it may cost, written before it leaves
    answer     what the teacher said, and why it is rejected, "" if it is not
    failure    why there was no answer, and whether it may have cost

Every line has a hash of the rest and is on the disk (fsync) before anything goes on, so a killed run loses no answer; a
request that was under way then is counted with the most that it may have cost. A torn last line is ignored.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from logtrain.core.atomic import sync
from logtrain.core.origin import check_origin, origin
from logtrain.core.sealed_lines import add, adding, parsed, read_sealed_lines

FILE, KIND = "answers.jsonl", "journal"


@dataclass(frozen=True)
class Sent:
    """A request that is about to leave."""

    job: int
    attempt: int
    prompt_tokens: int
    """the most that are expected"""
    tokens: int
    """the most of an answer"""


@dataclass(frozen=True)
class Answer:
    """What the teacher said."""

    job: int
    attempt: int
    text: str
    finish: str
    """why it ended, in the server's word"""
    prompt_tokens: int
    tokens: int
    is_counted: bool
    """whether the teacher has counted the tokens; else they are the most that was expected"""
    rejected: str
    """why it is no row: a reason, a colon and what is wrong; "" where it is one"""


@dataclass(frozen=True)
class Failure:
    """Why there was no answer."""

    job: int
    attempt: int
    kind: str
    """an HTTP status, timeout, connection or reply"""
    detail: str
    may_cost: bool
    """whether the teacher may have answered all the same"""


Event = Sent | Answer | Failure
KINDS: dict[str, type[Event]] = {"sent": Sent, "answer": Answer, "failure": Failure}
NAMES = {kind: name for name, kind in KINDS.items()}


class Journal:
    """The file, to be added to."""

    def __init__(self, folder: Path):
        """Opens it, or makes it. Raises OSError and ValueError."""
        self.file = folder / FILE
        self.stream, self.origin = adding(self.file), origin(folder, KIND)
        sync(folder)

    def add(self, events: Iterable[Event]) -> None:
        """Write events, which are on the disk then. Raises OSError."""
        add(self.stream, *(facts_of(event) | self.origin for event in events), is_durable=True)

    def close(self) -> None:
        """Close the file."""
        self.stream.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def facts_of(event: Event) -> dict[str, Any]:
    """An event as JSON."""
    return {"event": NAMES[type(event)], **asdict(event)}


def read_journal(folder: Path, num_jobs: int) -> Iterator[Event]:
    """The events, in their order. `num_jobs`: of the run. Raises ValueError for a line that has changed since it was
    written, and for one of another run.
    """
    file, wanted = folder / FILE, origin(folder, KIND)
    for number, facts in read_sealed_lines(file, "and what it says is lost"):
        where = f"{file} line {number}"
        name = check_origin(where, facts, wanted).pop("event", None)
        if not isinstance(name, str) or name not in KINDS:
            raise ValueError(f"{where}: written by another version of logtrain: {str(name)[:80]!r} is no event")
        event = parsed(KINDS[name], facts, where)
        if not 0 <= event.job < num_jobs:
            raise ValueError(f"{where}: job {event.job} of {num_jobs}: is of another run")
        yield event
