"""The figures of log tasks, by hand: small sets whose right values can be counted."""

from math import sqrt

import pytest

from logtrain.evaluation import detection, diagnosis, log_parsing, log_qa, root_cause
from logtrain.evaluation.clusters import figure_differences, figures_of
from logtrain.evaluation.detection import Verdict
from logtrain.evaluation.diagnosis import Diagnosed
from logtrain.evaluation.grounding import scores as grounding
from logtrain.evaluation.log_parsing import Parsed
from logtrain.evaluation.tasks import Outcome, majority_figures, tallies
from logtrain.text.chat_template import Turn


def parsing(*lines: tuple[str, str | None]) -> dict[str, float]:
    found = figures_of(log_parsing.tally([Parsed(*line) for line in lines]))
    return {name.removeprefix("parsing_"): value for name, value in found.items()}


def test_parsing():
    """Six lines of three templates A <*>, B <*> and C: A is right but for one of its lines, B is grouped rightly with
    another text, C is grouped with the line of A."""
    found = parsing(
        ("A <*>", "A <*><*>"), ("A <*>", "A <*>"), ("A <*>", "C"),
        ("B <*>", "B x"), ("B <*>", "B x"),
        ("C", "C"),
    )  # fmt: skip
    assert found["pa"] == pytest.approx(3 / 6)  # two of A, and C
    assert found["ga"] == pytest.approx(2 / 6)  # those of B alone
    assert found["fga"] == pytest.approx(2 * 1 / (3 + 3))
    assert found["fta"] == pytest.approx(2 * 1 / (3 + 3))  # A <*> holds lines of A alone, though not all
    assert found["edit"] == pytest.approx((5 / 5 + 3 / 5 + 3 / 5) / 6)
    assert found["unread"] == 0


def test_parsing_what_could_not_be_read_is_wrong_and_a_group_of_its_own():
    found = parsing(("A", None), ("B", "B"), ("C", None))
    assert found == {"pa": 1 / 3, "ga": 1 / 3, "fga": 2 / 5, "fta": 2 / 5, "edit": 2 / 3, "unread": 2 / 3}
    alone = parsing(("A", None))
    assert (alone["ga"], alone["fga"]) == (0, 0), "not even a template of one line"


def test_parsing_groups_are_those_of_a_system():
    lines = [Parsed("start", "start", "a"), Parsed("start", "go", "b"), Parsed("stop", "start", "b")]
    found = figures_of(log_parsing.tally(lines))
    assert found["parsing_ga"] == 1
    assert found["parsing_pa"] == pytest.approx(1 / 3)


def anomaly(tp: int, fp: int, fn: int, tn: int, unread: int = 0, unread_normal: int = 0) -> dict[str, float]:
    rows = [Verdict(True, True)] * tp + [Verdict(False, True)] * fp + [Verdict(True, False)] * fn
    rows += [Verdict(False, False)] * tn + [Verdict(True, None)] * unread + [Verdict(False, None)] * unread_normal
    found = figures_of(detection.tally(rows, range(len(rows))))
    return {name.removeprefix("anomaly_"): value for name, value in found.items()}


def test_anomaly():
    found = anomaly(tp=3, fp=1, fn=1, tn=4, unread=1)
    assert found == pytest.approx({
        "accuracy": 7 / 10, "precision": 3 / 4, "recall": 3 / 5, "f1": 6 / 9, "balanced": (3 / 5 + 4 / 5) / 2,
        "mcc": (3 * 4 - 1 * 2) / sqrt(4 * 5 * 5 * 6), "unread": 1 / 10,
    })  # fmt: skip
    assert anomaly(tp=1, fp=0, fn=0, tn=0, unread_normal=1)["precision"] == 1 / 2, "an unread normal is a false alarm"


def test_anomaly_accuracy_alone_misleads():
    found = anomaly(tp=0, fp=0, fn=7, tn=93)
    assert (found["accuracy"], found["f1"], found["mcc"], found["balanced"]) == (0.93, 0, 0, 0.5)


def test_anomaly_without_a_class():
    assert set(anomaly(tp=0, fp=1, fn=0, tn=3)) == {"accuracy", "unread"}
    assert set(anomaly(tp=1, fp=0, fn=1, tn=0)) == {"accuracy", "precision", "recall", "f1", "unread"}


def test_diagnosis():
    rows = [Diagnosed("disk", "disk"), Diagnosed("disk", "net"), Diagnosed("net", "net"), Diagnosed("cpu", None)]
    rows.append(Diagnosed("net", "fan"))
    found = figures_of(diagnosis.tally(rows, range(5)))
    assert found["diagnosis_accuracy"] == 2 / 5
    # disk: one right, one missed; net: one right, one missed, one false; cpu: missed; fan: false
    assert found["diagnosis_macro_f1"] == pytest.approx((2 / 3 + 2 / 4 + 0 + 0) / 4)
    assert found["diagnosis_unread"] == 1 / 5


def test_the_labels_of_two_models_differ():
    """Of three rows a says each right, and b one, with two labels that are never true."""
    a, b = (
        [
            Outcome("diagnosis", truth, said, "", bytes([i]))
            for i, (truth, said) in enumerate(zip("xyz", told, strict=True))
        ]
        for told in ("xyz", "xvw")
    )
    found = figure_differences(tallies(a, b)["diagnosis"], tallies(b, a)["diagnosis"])
    assert found["diagnosis_macro_f1"].difference == pytest.approx(1 - 1 / 5)  # b: x 1; y, z missed; v, w false
    assert found["diagnosis_accuracy"].difference == pytest.approx(2 / 3)


def test_the_majority_beside():
    """Of five rows three are normal; of four diagnoses two are disk."""
    said = [("anomaly", truth, "abnormal") for truth in ("normal", "abnormal", "normal", "normal", "abnormal")]
    said += [("diagnosis", truth, None) for truth in ("net", "disk", "disk", "cpu")]
    found = majority_figures([Outcome(task, truth, read, "", b"") for task, truth, read in said])
    assert found == {
        "anomaly_accuracy": 3 / 5, "anomaly_precision": 0, "anomaly_recall": 0, "anomaly_f1": 0, "anomaly_mcc": 0,
        "anomaly_balanced": 1 / 2, "diagnosis_accuracy": 2 / 4,
        "diagnosis_macro_f1": pytest.approx((4 / 6 + 0 + 0) / 3),  # disk: two right, two false
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "reference", "exact", "f1"),
    [
        ("The sshd, daemon!", "sshd daemon", 1, 1),
        ("10.0.0.1 failed", "10.0.0.1", 0, 2 / 3),
        ("failed failed login", "failed login login", 0, 4 / 6),
        ("the", "", 1, 1),
        ("x", "the", 0, 0),
        (None, "x", 0, 0),
    ],
)
def test_log_qa(said, reference, exact, f1):
    found = log_qa.scores(said, reference)
    assert (found["logqa_exact"], found["logqa_f1"]) == (exact, pytest.approx(f1))
    assert found["logqa_unread"] == (said is None)


TWO = """{"1": {"root cause occurrence datetime": "2021-03-04 14:57:00", "root cause component": "Tomcat01",
"root cause reason": "high memory"}, "2": {"root cause component": "Mysql02", "root cause reason": "disk"}}"""


@pytest.mark.parametrize(
    ("answer", "solved", "partial"),
    [
        (TWO, 1, 1),
        ('[{"component": "Mysql02", "reason": "disk"}, {"time": "2021-03-04 14:58:00", "component": "Tomcat01", '
         '"reason": "high memory"}]', 1, 1),  # in another order, 60 s off
        ('[{"component": "Mysql02", "reason": "disk"}, {"time": "2021-03-04 14:58:01", "component": "Tomcat01", '
         '"reason": "high memory"}]', 0, 4 / 5),
        ('[{"component": "Tomcat01", "reason": "disk"}, {"component": "mysql02", "reason": "x"}]', 0, 1 / 5),
        ('{"component": "Tomcat01", "reason": "high memory"}', 0, 0),  # one of two failures
        ("Tomcat01 ran out of memory", 0, 0),
    ],
)  # fmt: skip
def test_root_cause(answer, solved, partial):
    reference = root_cause.failures(TWO)
    assert reference and len(reference) == 2
    found = root_cause.scores(root_cause.failures(answer), reference)
    assert (found["rca_solved"], found["rca_partial"]) == (solved, pytest.approx(partial))
    assert found["rca_unread"] == ("{" not in answer)


def test_grounding():
    turns = [Turn("user", "Explain.\nsshd[2380]: Failed password for root from 10.0.0.5 port 49602 /var/log/auth.log")]
    found = grounding(
        "Root failed from 10.0.0.5 and 10.0.0.6; see /var/log/auth.log, 10.0.0.6.", turns, "from 10.0.0.5"
    )
    assert found == {"grounded": 2 / 3, "recalled": 1}, "equal entities count once"
    assert grounding("Somebody failed.", turns, "10.0.0.5, port 49602") == {"grounded": None, "recalled": 0}
    assert grounding("See line 1 and L9.", turns, "L9")["recalled"] == 1

    turns = [Turn("user", "Block blk_7 of size 67108864 was lost.")]
    assert grounding("64 MB of blk_7 and 64 others were lost.", turns, "")["grounded"] == 1 / 2, "64 is not, once"
