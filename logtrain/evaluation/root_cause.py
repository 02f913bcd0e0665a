"""Scores of root cause analysis by OpenRCA's rule (Xu et al. 2025): which failures there were, each with its component,
reason and time, as far as the task asks for them.

    solved     1 where all that the reference names is right
    partial    share of what the reference names that is right
    unread     1 where the answer has no failure in JSON

The answer's and the reference's failures are JSON objects that say something of a failure and hold none that does, in
a list, in another object by any key, or alone, as extraction.py reads them:

    {"1": {"root cause occurrence datetime": "2021-03-04 14:57:00", "root cause component": "Tomcat01",
           "root cause reason": "high memory usage"}}

or shorter "time", "component" and "reason", each in any case. Component and reason must be equal to the letter, once
outer white space is off; a time may be off by 60 s, and must be written as there. The failures of both are matched so
that most is right; where their numbers differ nothing is. What the reference leaves out is not asked.
"""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from logtrain.evaluation.extraction import json_values, objects, plain, spoken
from logtrain.evaluation.scoring import Scores

METRICS = {"rca_solved": "RCA solved", "rca_partial": "RCA partial", "rca_unread": "RCA, unread"}
"""Titles of the scores, by their names."""
MOST_FAILURES = 12  # of a reference; all ways to match them are tried
TOLERANCE = timedelta(seconds=60)
FORMAT = "%Y-%m-%d %H:%M:%S"
NAMES = {
    "time": ("rootcauseoccurrencedatetime", "time", "datetime"),
    "component": ("rootcausecomponent", "component"),
    "reason": ("rootcausereason", "reason"),
}


class Failure(NamedTuple):
    """A failure, "" for what is not said of it."""

    time: str
    component: str
    reason: str


def failures(text: str) -> list[Failure] | None:
    """The failures that a text gives as JSON; None where it gives none."""
    found = [one for one in objects(json_values(spoken(text))) if is_failure(one)]
    innermost = (one for one in found if not any(is_failure(each) for each in objects(list(one.values()))))
    return [Failure(*(said(one, names) for names in NAMES.values())) for one in innermost] or None


def is_failure(one: dict[str, Any]) -> bool:
    """Whether an object says something of a failure."""
    return any(said(one, names) for names in NAMES.values())


def said(one: dict[str, Any], names: tuple[str, ...]) -> str:
    """The text by the first of these names that an object has."""
    values = {plain(key): value for key, value in one.items()}
    return next((str(values[name]).strip() for name in names if isinstance(values.get(name), str | int | float)), "")


def scores(answer: list[Failure] | None, reference: list[Failure]) -> Scores:
    """The scores of one answer. `answer`: None where it could not be read. `reference`: at most `MOST_FAILURES`."""
    asked = sum(sum(map(bool, failure)) for failure in reference)
    right = most_right(answer, reference) if answer and len(answer) == len(reference) else 0
    return {"rca_solved": float(right == asked), "rca_partial": right / asked, "rca_unread": float(answer is None)}


def most_right(answer: list[Failure], reference: list[Failure]) -> int:
    """How much is right if each failure of the answer is matched with another of the reference in the best way."""
    best = {0: 0}  # the answer's failures that are matched, as bits -> the most that is right so far
    for true in reference:
        following: dict[int, int] = {}
        for taken, right in best.items():
            for i, one in enumerate(answer):
                if not taken >> i & 1:
                    following[taken | 1 << i] = max(following.get(taken | 1 << i, 0), right + num_right(one, true))
        best = following
    return max(best.values())


def num_right(one: Failure, true: Failure) -> int:
    """How many of the things that a reference's failure names a failure has right."""
    is_right = [true.component == one.component, true.reason == one.reason, is_near(one.time, true.time)]
    return sum(map(bool.__and__, is_right, map(bool, (true.component, true.reason, true.time))))


def is_near(one: str, true: str) -> bool:
    """Whether two times differ by 60 s at most; one that is none is near to nothing."""
    try:
        return abs(datetime.strptime(one, FORMAT) - datetime.strptime(true, FORMAT)) <= TOLERANCE
    except ValueError:
        return False
