"""The samples of an evaluation: every question with a candidate's answer and the answer's scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson

from logtrain.core.atomic import write_file
from logtrain.data.questions import Question
from logtrain.evaluation import grounding
from logtrain.evaluation.answers import RecordedAnswer, read_answers
from logtrain.evaluation.question_set import QuestionSet
from logtrain.evaluation.scoring import METRICS, Pair, Scores, score_all
from logtrain.evaluation.tasks import ANSWER_METRICS, Outcome, outcome_of
from logtrain.text.masked import mask

SAMPLE_METRICS = {**METRICS, "stopped": "Stopped", **grounding.METRICS, **ANSWER_METRICS}
"""The titles of a sample's scores, by their names. stopped: 1 where the answer ended by itself, 0 where it was cut. A
sample has those of ANSWER_METRICS that are of its task."""


class Sample(NamedTuple):
    """A question, a candidate's answer to it, and the answer's scores."""

    question: Question
    """The question, with its reference."""
    answer: RecordedAnswer
    """The answer."""
    scores: Scores
    """Scores by the names of SAMPLE_METRICS."""
    outcome: Outcome
    """What was read from the answer."""
    is_unseen: bool | None
    """Whether the question's group is one that no model was trained on; None without groups."""

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
    asked = [question_set.questions[number] for number in numbers]
    pairs = [Pair(answers[number].output, question.reference) for number, question in zip(numbers, asked, strict=True)]
    masked = mask([question.turns[-1].content for question in asked]).texts
    return [
        make_sample(question_set, number, answers[number], scores, alike)
        for number, scores, alike in zip(numbers, score_all(pairs), masked, strict=True)
    ]


def make_sample(
    question_set: QuestionSet, number: int, answer: RecordedAnswer, of_text: Scores, alike: bytes
) -> Sample:
    """The sample of the question of this number. `of_text`: the scores of the answer's text. `alike`: what the question
    has in common with those like it.
    """
    question, task = question_set.questions[number], question_set.tasks[number]
    outcome, of_task = outcome_of(task, question, alike, answer.output, question_set.labels)
    grounded = grounding.scores(answer.output, question.turns, question.reference)
    scores = {**of_text, "stopped": float(answer.finish_reason == "stop"), **grounded, **of_task}
    is_unseen = None if question_set.held_out is None else question_set.is_unseen(question)
    return Sample(question, answer, scores, outcome, is_unseen)


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
            **(
                {} if sample.outcome.task == "text" else {"scored_as": sample.outcome.task, "read": sample.outcome.read}
            ),
            **({} if sample.is_unseen is None else {"group": sample.question.group, "unseen": sample.is_unseen}),
            "scores": sample.scores,
        }
        for name, of_model in samples.items()
        for sample in of_model
    )
    write_file(file, b"".join(orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in objects))
