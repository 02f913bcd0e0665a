"""The answers of an evaluation on disk, written as they come, so that one that was killed goes on where it was.

    answers/NAME.00000.jsonl    one object an answer of model NAME, by rank 0; a torn last line counts for nothing

Any number of ranks may go on: what any of them has answered is not asked again.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from logtrain.data.questions import Question


class Answered(NamedTuple):
    """One model's answer to question `number`."""

    number: int
    prompt_sha256: str
    prompt_tokens: int
    output: str
    output_tokens: int | None
    finish_reason: str


def fingerprint(prompt: Sequence[int], reference: str) -> str:
    """Of a question as a model sees it, and of what it is compared with."""
    return hashlib.sha256(np.array(prompt, "<u4").tobytes() + reference.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerFile:
    """Where one rank writes the answers of one model."""

    def __init__(self, folder: Path, model: str, rank: int):
        folder.mkdir(exist_ok=True)
        self.stream = open(folder / f"{model}.{rank:05d}.jsonl", "ab")  # noqa: SIM115 (closed by close)
        if self.stream.tell():
            self.stream.write(b"\n")  # the last line may be torn; a blank one is nothing

    def add(self, answered: Answered) -> None:
        self.stream.write(orjson.dumps(answered._asdict(), option=orjson.OPT_APPEND_NEWLINE))
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


def read_answers(folder: Path, model: str) -> dict[int, Answered]:
    """What all ranks have written of a model's answers, by number of the question."""
    found = {}
    for file in sorted(folder.glob(f"{model}.?????.jsonl")):
        for line in file.read_bytes().splitlines():
            try:
                answered = Answered(**orjson.loads(line))
            except (orjson.JSONDecodeError, TypeError):
                continue
            found.setdefault(answered.number, answered)
    return found


def check_same(
    folder: Path, answered: Iterable[Answered], prompts: Sequence[str], questions: Sequence[Question]
) -> None:
    """Raises ValueError if an answer is to another question than the one of its number; `prompts`: fingerprints."""
    for answer in sorted(answered):
        if answer.number >= len(prompts) or answer.prompt_sha256 != prompts[answer.number]:
            row = f" (row {questions[answer.number].row})" if answer.number < len(questions) else ""
            raise ValueError(
                f"{folder}: answers another question {answer.number}{row} than the data has now; the evaluation would "
                f"not be one: restore the data, the template and the tokenizer, or choose another --run"
            )
