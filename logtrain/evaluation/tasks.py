"""The tasks that answers can be scored as: what is read from an answer, and which figures that gives.

    text        nothing is read; the scores of texts alone, which every task has too
    parsing     a log template                  log_parsing.py
    anomaly     normal or abnormal              detection.py
    diagnosis   one of a closed set of labels   diagnosis.py
    logqa       a short answer                  log_qa.py
    rca         failures in JSON                root_cause.py

Scores of logqa and rca are of an answer, as those of texts are. The figures of the others are of a set: F1 is no mean.
How an answer is read is in extraction.py.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from logtrain.core.printable import printable
from logtrain.data.questions import Question
from logtrain.evaluation import detection, diagnosis, log_parsing, log_qa, root_cause
from logtrain.evaluation.clusters import Tally, figures_of
from logtrain.evaluation.config import Task
from logtrain.evaluation.extraction import label, short_answer, template
from logtrain.evaluation.scoring import Scores

ABNORMAL, NORMAL = "abnormal", "normal"
VERDICTS = {
    NORMAL: NORMAL,
    **dict.fromkeys((ABNORMAL, "anomalous", "anomaly", "anomalies", "abnormality", "abnormalities"), ABNORMAL),
}
"""{word: the label of anomaly detection that it stands for}"""
MOST_LABELS = 100  # of a diagnosis; more are no closed set

ANSWER_METRICS = log_qa.METRICS | root_cause.METRICS
"""Titles of the scores of an answer to a task, by their names."""
SET_METRICS = log_parsing.METRICS | detection.METRICS | diagnosis.METRICS
"""Titles of the figures of a set of answers, by their names."""
LESS_IS_BETTER = frozenset(name for name in ANSWER_METRICS | SET_METRICS if name.endswith("_unread")) | {"parsing_edit"}


class Outcome(NamedTuple):
    """What was read from an answer to a task."""

    task: Task
    """The task that the answer is scored as."""
    truth: str
    """What should have been read: a template or a label; the reference of other tasks."""
    read: str | None
    """What was read; None where nothing could be, and for a text."""
    scope: str
    """The name of the row's task, within which lines are grouped."""
    cluster: bytes
    """What rows that are alike have in common: the last turn of the question with its values masked."""


def read_answer(task: Task, answer: str, labels: Sequence[str]) -> str | None:
    """What an answer to a task says; None where nothing can be read, and for a text. `labels`: those of diagnosis."""
    if task == "anomaly":
        return label(answer, VERDICTS)
    if task == "diagnosis":
        return label(answer, {each: each for each in labels})
    if task == "parsing":
        return template(answer)
    return short_answer(answer) if task == "logqa" else None


def read_truth(task: Task, reference: str, labels: Sequence[str]) -> str:
    """What a reference says. Raises ValueError for one that cannot be the answer to its task."""
    truth = reference.strip()
    if task == "anomaly":
        truth = VERDICTS.get(truth.casefold(), "")
        if not truth:
            raise ValueError(
                f"{shown(reference)} is neither {NORMAL} nor {ABNORMAL}, as a reference of anomaly must be"
            )
    if task == "diagnosis":
        truth = {each.casefold().strip(): each for each in labels}.get(truth.casefold(), "")
        if not truth:
            raise ValueError(f"{shown(reference)} is none of the labels of diagnosis; name them all with --labels")
    if task == "rca":
        found = root_cause.failures(reference)
        if not found or len(found) > root_cause.MOST_FAILURES:
            raise ValueError(
                f"{shown(reference)} does not give 1 to {root_cause.MOST_FAILURES} failures in JSON, as a reference of "
                f"rca must; docs/evaluation.md shows how"
            )
    return truth


def shown(text: str) -> str:
    """The beginning of a text, for an error."""
    return repr(printable(text[:60], one_line=True))


def outcome_of(
    task: Task, question: Question, cluster: bytes, answer: str, labels: Sequence[str]
) -> tuple[Outcome, Scores]:
    """What was read from an answer, and the scores of the answer alone that its task has."""
    read, truth = read_answer(task, answer, labels), read_truth(task, question.reference, labels)
    scores: Scores = {}
    if task == "logqa":
        scores = log_qa.scores(read, question.reference)
    if task == "rca":
        found = root_cause.failures(answer)
        scores = root_cause.scores(found, root_cause.failures(question.reference) or [])
        read = None if found is None else answer
    return Outcome(task, truth, read, question.task, cluster), scores


def tallies(outcomes: Sequence[Outcome], others: Sequence[Outcome] = ()) -> dict[Task, Tally]:
    """The counts of each task whose figures are of a set, by the task. `others`: those of a model with whose counts
    they are to be compared.
    """
    found: dict[Task, Tally] = {}
    for task in dict.fromkeys(outcome.task for outcome in outcomes):
        rows = [outcome for outcome in outcomes if outcome.task == task]
        clusters = [(row.scope, row.cluster) for row in rows]
        if task == "parsing":
            found[task] = log_parsing.tally([log_parsing.Parsed(row.truth, row.read, row.scope) for row in rows])
        if task == "anomaly":
            said = (None if row.read is None else row.read == ABNORMAL for row in rows)
            truths = (row.truth == ABNORMAL for row in rows)
            found[task] = detection.tally(list(map(detection.Verdict, truths, said)), clusters)
        if task == "diagnosis":
            labels = {row.read for row in (*outcomes, *others) if row.task == task and row.read is not None}
            diagnosed = [diagnosis.Diagnosed(row.truth, row.read) for row in rows]
            found[task] = diagnosis.tally(diagnosed, clusters, sorted(labels))
    return found


def majority_figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The figures of the most frequent truth as every answer, the first of equals; of tasks with labels alone."""
    found: dict[str, float] = {}
    for task in ("anomaly", "diagnosis"):
        rows = [outcome for outcome in outcomes if outcome.task == task]
        for most, _ in Counter(row.truth for row in rows).most_common(1):
            constant = tallies([row._replace(read=most) for row in rows])[task]
            found |= {name: value for name, value in figures_of(constant).items() if not name.endswith("_unread")}
    return found
