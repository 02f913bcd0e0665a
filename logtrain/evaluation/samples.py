"""The samples of an evaluation: every question with a candidate's answer and the answer's scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson

from logtrain.core.atomic import write_file
from logtrain.data.questions import Question
from logtrain.evaluation.answers import RecordedAnswer, read_answers
from logtrain.evaluation.question_set import QuestionSet
from logtrain.evaluation.scoring import METRICS, Pair, Scores, score_all

SAMPLE_METRICS = {**METRICS, "stopped": "Stopped"}
"""The titles of a sample's scores, by their names. stopped: 1 where the answer ended by itself, 0 where it was cut."""


class Sample(NamedTuple):
    """A question, a candidate's answer to it, and the answer's scores."""

    question: Question
    """The question, with its reference."""
    answer: RecordedAnswer
    """The answer."""
    scores: Scores
    """Scores by the names of SAMPLE_METRICS."""

    @property
    def pair(self) -> Pair:
        """The texts that are compared for the scores."""
        return Pair(self.answer.output, self.question.reference)


def read_samples(folder: Path, name: str, question_set: QuestionSet) -> list[Sample]:
    """A sample for each question that is asked, in their order, from the answers of candidate `name` in `folder`.
    Raises ValueError for a missing answer.
    """
    answers, numbers = read_answers(folder, name), question_set.numbers
    if missing := [number for number in numbers if number not in answers]:
        raise ValueError(f"{folder.parent}: {len(missing):,} answers of {name} are missing; let ranks share the folder")
    questions = [question_set.questions[number] for number in numbers]
    answered = [answers[number] for number in numbers]
    pairs = [Pair(answer.output, question.reference) for question, answer in zip(questions, answered, strict=True)]
    scores = score_all(pairs)
    for answer, of_text in zip(answered, scores, strict=True):
        of_text["stopped"] = float(answer.finish_reason == "stop")
    return list(map(Sample, questions, answered, scores))


def write_samples(file: Path, samples: Mapping[str, Sequence[Sample]]) -> None:
    """Write a JSON object for each sample, one on a line. `samples`: those of each candidate by its name. Raises
    OSError.
    """
    objects = (
        {
            "model": name,
            "row": sample.question.row,
            "turn": sample.question.turn,
            "task": sample.question.task,
            "reference": sample.question.reference,
            **sample.answer._asdict(),
            "scores": sample.scores,
        }
        for name, of_model in samples.items()
        for sample in of_model
    )
    write_file(file, b"".join(orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in objects))
