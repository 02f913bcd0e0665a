"""Rows of a test set -> questions with the answer they should get.

    sharegpt, messages, alpaca   as in fine-tuning (conversations.py)
    nlplog   {instruction, log, output, domain}    the question is {instruction}, which quotes the log

A question is all turns before an assistant's, the reference that turn's text. What cannot be read is a BadRow in its
place; nothing is shortened.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from logtrain.data.conversations import row_conversation
from logtrain.data.files import InputFile
from logtrain.data.lines import BadRow
from logtrain.data.rows import AS_THEY_ARE, NoRow, Reading, group_of, parsed_rows, refuse_unencodable, string
from logtrain.text.chat_template import Turn

QuestionFormat = Literal["sharegpt", "messages", "alpaca", "nlplog"]
TASK_COLUMN = "domain"
AnswersOf = Literal["last", "all"]


class Question(NamedTuple):
    """What a model is asked, and the answer that it should give."""

    row: int
    turn: int
    """which of the row's turns should be the answer"""
    task: str
    """the kind of question: what the row names, else the name of its file"""
    has_task: bool
    """whether the row names it"""
    turns: tuple[Turn, ...]
    """all before the answer"""
    reference: str
    """the answer"""
    kind: str = ""
    """its value in the column that says what answers are scored as"""
    group: str = ""
    """its value in the column that a split into training and validation went by"""


def questions(
    path: str | Path,
    format: QuestionFormat,
    answers: AnswersOf = "last",
    task_column: str = TASK_COLUMN,
    reading: Reading = AS_THEY_ARE,
    kind_column: str = "",
) -> Iterator[Question | BadRow]:
    """The questions in the file's order, a BadRow in the place of each row that is none.

    `answers`: which assistant turns of a row are asked for. `task_column` names the kind of a row's questions, a
    string; without one it is of the kind named after its file. `kind_column`: the column of what the row's answers are
    scored as, "" for none; a row without a value there is bad. Raises ValueError for a file without rows, that has no
    rows of this format, or that cannot be read on.
    """
    file = InputFile(path)
    if file.kind.is_text:
        raise ValueError(f"{path}: a text file has no {format} rows; give JSON or JSON lines")
    chat_format = "alpaca" if format == "nlplog" else format
    unread = {task_column, kind_column, *(["log"] if format == "nlplog" else [])} - {reading.split_by, ""}
    inner = reading._replace(ignore={*reading.ignore, *unread}, renamed={})

    def parse(row: int, value: object) -> Iterator[Question]:
        value = reading.named(value)
        task = kind = ""
        if isinstance(value, dict):
            task = string(value, task_column, required=False).strip()
            refuse_unencodable(task)
            kind = string(value, kind_column).strip() if kind_column else ""
        turns, domain = row_conversation(value, chat_format, inner)
        group = group_of(value, reading.split_by, domain or file.stem)
        answered = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        for i in answered if answers == "all" else answered[-1:]:
            yield Question(row, i, task or file.stem, bool(task), turns[:i], turns[i].content, kind, group)

    for item in parsed_rows(file, 1, parse):
        if isinstance(item, NoRow):
            raise ValueError(f"{path}: holds no row")
        yield item
