"""The answers of an evaluation on disk, written as they come, so that one that was killed goes on where it was.

    answers/NAME.00000.jsonl    one object an answer of candidate NAME, by rank 0; a torn last line counts for nothing

Any number of ranks may go on: what any of them has answered is not asked again.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import orjson


class RecordedAnswer(NamedTuple):
    """A candidate's answer to one question, and what it came from."""

    number: int
    """The question's in its set."""
    model_sha256: str
    prompt_sha256: str
    prompt_tokens: int
    output: str
    output_tokens: int | None
    """None where a server does not say."""
    finish_reason: str
    """stop: it ended by itself; length: it was cut."""


def record_answers(folder: Path, name: str, rank: int, answers: Iterable[RecordedAnswer]) -> Iterator[RecordedAnswer]:
    """The answers of candidate `name`, each written by this rank before it is passed on. No file before the first."""
    stream = None
    try:
        for answer in answers:
            if stream is None:
                folder.mkdir(exist_ok=True)
                stream = open(folder / f"{file_name(name)}.{rank:05d}.jsonl", "ab")  # noqa: SIM115 (closed below)
                if stream.tell():
                    stream.write(b"\n")  # the last line may be torn; a blank one is nothing
            stream.write(orjson.dumps(answer._asdict(), option=orjson.OPT_APPEND_NEWLINE))
            stream.flush()
            yield answer
    finally:
        if stream:
            stream.close()


def read_answers(folder: Path, name: str) -> dict[int, RecordedAnswer]:
    """What all ranks have written of a candidate's answers, by number of the question."""
    found = {}
    for file in sorted(folder.glob(f"{file_name(name)}.?????.jsonl")):
        for line in file.read_bytes().splitlines():
            try:
                answer = RecordedAnswer(**orjson.loads(line))
            except (orjson.JSONDecodeError, TypeError):
                continue
            found.setdefault(answer.number, answer)
    return found


def file_name(name: str) -> str:
    """A candidate's name as that of a file: a server may know a model by one with slashes."""
    return quote(name, safe="")
