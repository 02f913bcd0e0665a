"""The answers of an evaluation on disk, written as they come, so that one that was killed goes on where it was.

    answers/NAME.00000.jsonl    one object an answer of model NAME, by rank 0; a torn last line counts for nothing

Any number of ranks may go on: what any of them has answered is not asked again.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import orjson

from logtrain.data.questions import Question


class Answered(NamedTuple):
    """One model's answer to question `number`."""

    number: int
    model_sha256: str
    prompt_sha256: str
    prompt_tokens: int
    output: str
    output_tokens: int | None
    finish_reason: str


def fingerprint(prompt: Sequence[int]) -> str:
    """Of a question as a model sees it."""
    return hashlib.sha256(np.array(prompt, "<u4").tobytes()).hexdigest()


def write_answers(folder: Path, model: str, rank: int, answers: Iterable[Answered]) -> Iterator[Answered]:
    """The answers of one model, each written by this rank before it is passed on. No file before the first."""
    stream = None
    try:
        for answered in answers:
            if stream is None:
                folder.mkdir(exist_ok=True)
                stream = open(folder / f"{quoted(model)}.{rank:05d}.jsonl", "ab")  # noqa: SIM115 (closed below)
                if stream.tell():
                    stream.write(b"\n")  # the last line may be torn; a blank one is nothing
            stream.write(orjson.dumps(answered._asdict(), option=orjson.OPT_APPEND_NEWLINE))
            stream.flush()
            yield answered
    finally:
        if stream:
            stream.close()


def quoted(model: str) -> str:
    """A model's name as that of a file: a server may know it by one with slashes."""
    return quote(model, safe="")


def read_answers(folder: Path, model: str) -> dict[int, Answered]:
    """What all ranks have written of a model's answers, by number of the question."""
    found = {}
    for file in sorted(folder.glob(f"{quoted(model)}.?????.jsonl")):
        for line in file.read_bytes().splitlines():
            try:
                answered = Answered(**orjson.loads(line))
            except (orjson.JSONDecodeError, TypeError):
                continue
            found.setdefault(answered.number, answered)
    return found


def check_same(folder: Path, model: str, digest: str, prompts: Sequence[str], questions: Sequence[Question]) -> None:
    """Raises ValueError if an answer there is another model's than the one of this digest, or to another question than
    the one of its number; `prompts`: fingerprints. Of more answers than questions (--limit was larger) the rest counts
    for nothing.
    """
    for answer in read_answers(folder, model).values():
        if answer.model_sha256 != digest:
            wrong = "of another model, tokenizer or template than are there now; restore them"
        elif answer.number < len(prompts) and answer.prompt_sha256 != prompts[answer.number]:
            row = questions[answer.number].row
            wrong = f"to another row {row} than the data has now; restore the data"
        else:
            continue
        raise ValueError(f"{folder}: {model}'s answers are {wrong}, or choose another --run")
