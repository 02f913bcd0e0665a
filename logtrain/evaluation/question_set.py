"""The questions of an evaluation: those that are read from the test set, and those of them that are asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from logtrain.core.printable import printable
from logtrain.data.config import renames
from logtrain.data.files import BadRow
from logtrain.data.prepared import read_manifest
from logtrain.data.questions import TASK_COLUMN, Question, questions
from logtrain.data.rows import Reading
from logtrain.evaluation.config import EvaluateConfig, Task
from logtrain.evaluation.tasks import MOST_LABELS, read_truth

BAD_ROWS_NAMED = 3  # the most bad rows that an error names


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a test set."""

    path: str
    """The file of the test set."""
    questions: Sequence[Question]
    """All that were read; a question's number is its index here."""
    num_bad_rows: int
    """Rows that could not be read and are left out."""
    tasks: Sequence[Task]
    """What the answer to each question is scored as."""
    labels: Sequence[str] = ()
    """The labels of diagnosis."""
    held_out: frozenset[str] | None = None
    """The groups that no model was trained on; None where rows have no groups."""
    too_long: Mapping[int, str] = field(default_factory=dict)
    """Why each question that is not asked is left out, by number."""

    @property
    def numbers(self) -> list[int]:
        """The numbers of the questions that are asked."""
        return [number for number in range(len(self.questions)) if number not in self.too_long]

    def without(self, too_long: Mapping[int, str]) -> "QuestionSet":
        """The same set, but these questions are not asked. `too_long`: the reason for each, by number."""
        return replace(self, too_long=too_long)

    def is_unseen(self, question: Question) -> bool:
        """Whether a question is of a group that no model was trained on."""
        return self.held_out is not None and question.group in self.held_out

    def where(self, number: int) -> str:
        """The file and the row of a question, for an error."""
        return f"{self.path} row {self.questions[number].row}"


def read_question_set(config: EvaluateConfig) -> QuestionSet:
    """The questions of the config's test set. Raises ValueError for more bad rows than `max_bad_rows`, for a file
    without a question, for a `task_column` that no row has, and for a reference that cannot be the answer to its task.
    """
    good: list[Question] = []
    bad: list[BadRow] = []
    split_by, held_out = groups_of(config)
    reading = Reading(config.ignore_columns, renames(config.columns), split_by)
    for item in questions(config.data, config.format, config.answers, config.task_column, reading, config.kind_column):
        if isinstance(item, BadRow):
            bad.append(item)
            continue
        good.append(item)
        if config.limit and len(good) >= config.limit:
            break
    if len(bad) > config.max_bad_rows:
        named = "; ".join(f"{config.data} row {row.row}: {row}" for row in bad[:BAD_ROWS_NAMED])
        more = f"; and {len(bad) - BAD_ROWS_NAMED:,} more" if len(bad) > BAD_ROWS_NAMED else ""
        raise ValueError(
            f"{len(bad):,} bad row{'s' if len(bad) > 1 else ''} (counting from 0): {named}{more}. Mend the data, or "
            f"leave them out with --max_bad_rows {len(bad)}"
        )
    if not good:
        raise ValueError(f"{config.data}: holds no question")
    if config.task_column != TASK_COLUMN and not any(question.has_task for question in good):
        raise ValueError(f"{config.data}: task_column = {config.task_column}: no question has such a column")
    tasks = tasks_of(config, good)
    found = QuestionSet(config.data, good, len(bad), tasks, labels_of(config, good, tasks), held_out)
    for number, (question, task) in enumerate(zip(good, tasks, strict=True)):
        try:
            read_truth(task, question.reference, found.labels)
        except ValueError as error:
            raise ValueError(f"{found.where(number)}: {error}") from None
    return found


def tasks_of(config: EvaluateConfig, asked: Sequence[Question]) -> list[Task]:
    """What the answer to each question is scored as. Raises ValueError for a row that names something else."""
    if not config.kind_column:
        return [config.task] * len(asked)
    known: dict[str, Task] = {task: task for task in get_args(Task)}
    for question in asked:
        if question.kind not in known:
            named = printable(question.kind[:60], one_line=True)
            raise ValueError(
                f"{config.data} row {question.row}: {config.kind_column} = {named!r}, not one of {', '.join(known)}"
            )
    return [known[question.kind] for question in asked]


def labels_of(config: EvaluateConfig, asked: Sequence[Question], tasks: Sequence[Task]) -> list[str]:
    """The labels of diagnosis: the config's, else those of the references. Raises ValueError for too many."""
    of_references = (each.reference.strip() for each, task in zip(asked, tasks, strict=True) if task == "diagnosis")
    labels = list(config.labels or dict.fromkeys(of_references))
    if len(labels) > MOST_LABELS:
        raise ValueError(
            f"{config.data}: {len(labels):,} different references of diagnosis, more than {MOST_LABELS}, are no closed "
            f"set; name its labels with --labels, or score them as logqa"
        )
    return labels


def groups_of(config: EvaluateConfig) -> tuple[str, frozenset[str] | None]:
    """(the column of a row's group, the groups that no model was trained on); ("", None) without groups. Raises
    ValueError for a prepared folder that holds out no groups, or goes by another column.
    """
    if not config.prepared:
        return config.split_by, frozenset(config.unseen) if config.split_by else None
    manifest = read_manifest(Path(config.prepared))
    column = manifest["settings"].get("split_by")
    if not column or "held_out_groups" not in manifest:
        raise ValueError(f"{config.prepared}: holds out no groups; prepare it with --split_by COLUMN")
    if config.split_by not in ("", column):
        raise ValueError(f"split_by = {config.split_by}: but {config.prepared} is split by {column}; leave it out")
    return column, frozenset(manifest["held_out_groups"]) | frozenset(config.unseen)
