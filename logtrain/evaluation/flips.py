"""Answers that one of two models got right and the other wrong: a difference of means near 0 can hide many of both."""

from collections.abc import Sequence
from typing import TypedDict

from logtrain.evaluation.log_parsing import collapsed
from logtrain.evaluation.samples import Sample

RIGHT_BY_SCORE = {"text": "exact_match", "logqa": "logqa_exact", "rca": "rca_solved"}
"""{task: the score that is 1 where an answer is right}; answers to other tasks are right if what was read is true."""


SHOWN = 10  # places in a line; scores.json has all
FIRST_ANSWER = 2  # the last turn that may be the first answer: after a system and a user turn


class Flips(TypedDict):
    """The answers of a task that are right of one of two models alone, each as [row, turn] of its question."""

    lost: list[list[int]]
    """Right of the first model, wrong of the second (1 -> 0)."""
    gained: list[list[int]]
    """Wrong of the first model, right of the second (0 -> 1)."""


def flips_of(a: Sequence[Sample], b: Sequence[Sample]) -> dict[str, Flips]:
    """The flips from model a to model b by the task that answers are scored as; of tasks that have any. `a`, `b`: the
    samples of the same questions in one order.
    """
    found: dict[str, Flips] = {}
    for of_a, of_b in zip(a, b, strict=True):
        if is_right(of_a) != is_right(of_b):
            flips = found.setdefault(of_a.outcome.task, {"lost": [], "gained": []})
            flips["lost" if is_right(of_a) else "gained"].append([of_a.question.row, of_a.question.turn])
    return found


def is_right(sample: Sample) -> bool:
    """Whether an answer is wholly right, as its task has it: the exact template, the label, the short answer, all
    failures, or the text of the reference.
    """
    outcome = sample.outcome
    if outcome.task in RIGHT_BY_SCORE:
        return sample.scores[RIGHT_BY_SCORE[outcome.task]] == 1
    if outcome.task == "parsing":
        return outcome.read is not None and collapsed(outcome.read) == collapsed(outcome.truth)
    return outcome.read == outcome.truth


def flips_line(task: str, flips: Flips) -> str:
    """The flips of a task in words, of each kind the first by their places."""
    lost, gained = flips["lost"], flips["gained"]
    return f"{task}: {len(lost):,} right -> wrong{places(lost)}; {len(gained):,} wrong -> right{places(gained)}"


def places(flips: Sequence[Sequence[int]]) -> str:
    """Where the first SHOWN questions stand, in brackets: their rows and, but for a first answer, their turns."""
    told = [f"row {row}" if turn <= FIRST_ANSWER else f"row {row} turn {turn}" for row, turn in flips[:SHOWN]]
    more = [f"and {len(flips) - SHOWN:,} more"] if len(flips) > SHOWN else []
    return f" ({', '.join(told + more)})" if told else ""
