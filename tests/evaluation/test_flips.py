"""Answers that are right of one of two models alone are counted and named, whatever the mean says."""

from logtrain.data.questions import Question
from logtrain.evaluation.comparison import compare
from logtrain.evaluation.flips import Flips, flips_line
from logtrain.evaluation.samples import SAMPLE_METRICS, Sample
from logtrain.evaluation.tasks import Outcome, read_answer
from tests.support.samples import make_sample

TRUTHS = {
    "parsing": "disk <*> fails at <*>",
    "anomaly": "abnormal",
    "diagnosis": "disk",
    "logqa": "sshd",
    "text": "It is fine",
}
RIGHT = {**TRUTHS, "parsing": "disk <*><*> fails at <*>", "anomaly": "It is anomalous."}
WRONG = {**dict.fromkeys(TRUTHS, ""), "parsing": "disk <*> fails", "anomaly": "normal", "diagnosis": "net or disk"}


def sample(task: str, row: int, is_right: bool, turn: int = 1) -> Sample:
    answer = (RIGHT if is_right else WRONG)[task]
    scores = dict.fromkeys(SAMPLE_METRICS, 0.5)
    scores |= dict.fromkeys(("exact_match", "logqa_exact", "rca_solved"), float(is_right))
    outcome = Outcome(task, TRUTHS[task], read_answer(task, answer, ["disk", "net"]), "t", b"")
    question = Question(row, turn, "t", True, (), TRUTHS[task])
    return make_sample(scores)._replace(question=question, outcome=outcome)


def test_flips_are_named_by_task_though_the_means_are_equal():
    """Of each task answer 1 is right of both, 2 of the first, 3 of the second, 4 of none."""
    a = [sample(task, row, row in (1, 2)) for task in TRUTHS for row in (1, 2, 3, 4)]
    b = [sample(task, row, row in (1, 3)) for task in TRUTHS for row in (1, 2, 3, 4)]
    difference = compare({"a": a, "b": b})["differences"][0]
    assert difference["flips"] == {task: {"lost": [[2, 1]], "gained": [[3, 1]]} for task in TRUTHS}
    assert difference["metrics"]["parsing_pa"]["difference"] == 0
    assert compare({"a": a, "b": a})["differences"][0]["flips"] == {}


def test_a_flip_of_a_later_turn_says_which():
    a, b = ([sample("text", 7, right, turn=turn) for turn in (1, 5)] for right in (True, False))
    flips = compare({"a": a, "b": b})["differences"][0]["flips"]["text"]
    assert flips_line("text", flips) == "text: 2 right -> wrong (row 7, row 7 turn 5); 0 wrong -> right"
    many = flips_line("x", Flips(lost=[], gained=[[row, 2] for row in range(1_012)]))
    assert many.startswith("x: 0 right -> wrong; 1,012 wrong -> right (row 0, row 1, ")
    assert many.endswith("row 9, and 1,002 more)")
