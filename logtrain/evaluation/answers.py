"""The answers of an evaluation on disk, written as they come, so that a killed evaluation loses none.

    answers/NAME.00000.jsonl    an object for each answer of candidate NAME by rank 0; a torn last line is ignored

Each object has the candidate's name, the run's identity and a hash of the rest of it. Any number of ranks may go on:
what any of them has answered is not asked again.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from logtrain.core.origin import check_origin, origin
from logtrain.core.sealed_lines import add, adding, parsed, read_sealed_lines
from logtrain.core.untrusted import named

KIND = "answers"  # what lines say of their file
MODEL = "model"  # of a line: whose answer it is, so that a file under another's name is found


class RecordedAnswer(NamedTuple):
    """A candidate's answer to one question, with hashes of the model and the prompt that it came from."""

    number: int
    """Number of the question in its set."""
    model_sha256: str
    """Hash of the model, as of `ModelFiles`."""
    prompt_sha256: str
    """Hash of the prompt's token ids."""
    prompt_tokens: int
    """Tokens of the prompt."""
    output: str
    """Text of the answer."""
    output_tokens: int | None
    """Tokens of the answer; None where a server does not say."""
    finish_reason: str
    """Why the answer ended: by itself (stop) or because it was cut (length)."""


def record_answers(folder: Path, name: str, rank: int, answers: Iterable[RecordedAnswer]) -> Iterator[RecordedAnswer]:
    """Yield the answers of candidate `name`, each after this rank has written it. Without an answer no file is made."""
    stream = None
    try:
        for answer in answers:
            if stream is None:
                folder.mkdir(exist_ok=True)
                stream = adding(folder / f"{file_name(name)}.{rank:05d}.jsonl")
            add(stream, {MODEL: name, **answer._asdict(), **origin(folder.parent, KIND)})
            yield answer
    finally:
        if stream:
            stream.close()


def read_answers(folder: Path, name: str) -> dict[int, RecordedAnswer]:
    """What all ranks have written of a candidate's answers, by number of the question. Raises ValueError for one that
    has changed since or is another candidate's or evaluation's; one that was torn is not there, and will be asked for
    again.
    """
    found: dict[int, RecordedAnswer] = {}
    wanted = origin(folder.parent, KIND)
    for file in sorted(folder.glob(f"{file_name(name)}.?????.jsonl")):
        for number, facts in read_sealed_lines(file, "and it is asked again", is_made_again=True):
            check_origin(f"{file} line {number}", facts, wanted)
            if (whose := facts.pop(MODEL, name)) != name:  # older versions have not written whose it is
                raise ValueError(f"{file} line {number}: an answer of {named(whose)}; give its file that name again")
            answer = parsed(RecordedAnswer, facts, f"{file} line {number}")
            found.setdefault(answer.number, answer)
    return found


def file_name(name: str) -> str:
    """A candidate's name in the form of a file's name: the name of a server's model may have slashes."""
    return quote(name, safe="")
