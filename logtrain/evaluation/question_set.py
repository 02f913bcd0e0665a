"""The questions of an evaluation: those that are read from the test set, and those of them that are asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from logtrain.data.files import BadRow
from logtrain.data.questions import TASK_COLUMN, Question, questions
from logtrain.evaluation.config import EvaluateConfig

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
    too_long: Mapping[int, str] = field(default_factory=dict)
    """Why each question that is not asked is left out, by number."""

    @property
    def numbers(self) -> list[int]:
        """The numbers of the questions that are asked."""
        return [number for number in range(len(self.questions)) if number not in self.too_long]

    def without(self, too_long: Mapping[int, str]) -> "QuestionSet":
        """The same set, but these questions are not asked. `too_long`: the reason for each, by number."""
        return replace(self, too_long=too_long)

    def where(self, number: int) -> str:
        """The file and the row of a question, for an error."""
        return f"{self.path} row {self.questions[number].row}"


def read_question_set(config: EvaluateConfig) -> QuestionSet:
    """The questions of the config's test set. Raises ValueError for more bad rows than `max_bad_rows`, for a file
    without a question, and for a `task_column` that no row has.
    """
    good: list[Question] = []
    bad: list[BadRow] = []
    for item in questions(config.data, config.format, config.answers, config.task_column, config.ignore_columns):
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
    return QuestionSet(config.data, good, len(bad))
