"""Samples of an evaluation with given scores."""

from collections.abc import Sequence

from logtrain.data.questions import Question
from logtrain.evaluation.answers import RecordedAnswer
from logtrain.evaluation.samples import Sample
from logtrain.evaluation.scoring import Scores
from logtrain.evaluation.tasks import Outcome
from logtrain.text.chat_template import Turn


def make_sample(
    scores: Scores, *, row: int = 0, task: str = "t", turns: Sequence[Turn] = (), prediction="x", reference="x"
) -> Sample:
    question = Question(row, len(turns), task, True, tuple(turns), reference)
    answer = RecordedAnswer(0, "", "", 1, prediction, 1, "stop")
    return Sample(question, answer, scores, Outcome("text", reference, None, task, b""), None)
