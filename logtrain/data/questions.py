"""Rows of a test set -> questions with the answer they should get.

    sharegpt, messages, alpaca   as in fine-tuning (conversations.py)
    nlplog   {instruction, log, output, domain}    the question is {instruction}, which quotes the log

A question is all turns before an assistant's, the reference that turn's text. What cannot be read is a BadRow in its
place; nothing is shortened.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from logtrain.data.conversations import row_conversation
from logtrain.data.documents import check_encodes, string
from logtrain.data.files import BadRow, InputFile
from logtrain.text.chat_template import Turn

QuestionFormat = Literal["sharegpt", "messages", "alpaca", "nlplog"]
TASK_COLUMN = "domain"
AnswersOf = Literal["last", "all"]


class Question(NamedTuple):
    row: int
    turn: int
    """which of the row's turns is asked for"""
    task: str
    has_task: bool
    """or it is of the kind named after its file"""
    turns: tuple[Turn, ...]
    """before it"""
    reference: str


def questions(
    path: str | Path,
    format: QuestionFormat,
    answers: AnswersOf = "last",
    task_column: str = TASK_COLUMN,
    ignore_columns: Collection[str] = (),
) -> Iterator[Question | BadRow]:
    """`answers`: which assistant turns of a row are asked for. `task_column` names the kind of a row's questions, a
    string; without one it is of the kind named after its file.
    """
    file = InputFile(path)
    if not file.is_json:
        raise ValueError(f"{path}: a text file has no {format} rows; give JSON or JSON lines")
    row = -1
    for row, value in file.rows(text_chars=1):
        try:
            yield from row_questions(row, value, format, answers, task_column, ignore_columns, file.stem)
        except BadRow as bad:
            bad.row = row
            yield bad
    if row < 0:
        raise ValueError(f"{path}: holds no row")


def row_questions(
    row: int,
    value: object,
    format: QuestionFormat,
    answers: AnswersOf,
    task_column: str,
    ignore_columns: Collection[str],
    stem: str,
) -> list[Question]:
    task, ignored = "", {*ignore_columns, task_column}
    if isinstance(value, dict):
        task = string(value, task_column, required=False).strip()
        check_encodes(task)
    if format == "nlplog":
        format, ignored = "alpaca", ignored | {"log"}
    turns, _ = row_conversation(value, format, ignored)
    answered = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    asked = answered if answers == "all" else answered[-1:]
    return [Question(row, i, task or stem, bool(task), turns[:i], turns[i].content) for i in asked]
