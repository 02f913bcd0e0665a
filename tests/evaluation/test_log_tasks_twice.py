"""The figures of log tasks equal a second implementation, written from the definitions in another manner: sets of lines
in place of counts, correlation in place of MCC's formula, permutations in place of a search. Both are compared on
perturbed parses of the twelve systems of loghub and on 2,000 random cases of each task.
"""

import csv
import itertools
import random
from datetime import datetime

import numpy as np
import pytest

from logtrain.evaluation import detection, diagnosis, log_parsing, log_qa, root_cause
from logtrain.evaluation.clusters import figures_of
from logtrain.evaluation.log_parsing import Parsed
from logtrain.evaluation.root_cause import Failure

CASES = 2000
NOTHING = object()  # the parse of a line whose answer could not be read


def distance(a: str, b: str) -> int:
    """Levenshtein's, row by row of the table."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
        before = row
    return before[-1]


def merged(template: str) -> str:
    while "<*><*>" in template:
        template = template.replace("<*><*>", "<*>")
    return template.strip()


def parsing_again(lines: list[Parsed]) -> dict[str, float]:
    """By sets of the numbers of lines."""
    trues = [(line.scope, merged(line.true)) for line in lines]
    said = [(line.scope, NOTHING if line.predicted is None else merged(line.predicted)) for line in lines]
    true_sets = {true: frozenset(i for i, each in enumerate(trues) if each == true) for true in set(trues)}
    said_sets = {text: frozenset(i for i, each in enumerate(said) if each == text) for text in set(said)}
    read = {text: members for text, members in said_sets.items() if text[1] is not NOTHING}
    same = set(true_sets.values()) & set(read.values())
    right = [text for text, members in read.items() if {trues[i] for i in members} == {text}]
    p, g = len(said_sets), len(true_sets)

    def harmonic(correct: int) -> float:
        precision, recall = correct / p, correct / g
        return 2 * precision * recall / (precision + recall) if correct else 0.0

    far = [
        1.0 if b is NOTHING else distance(b, a) / max(len(a), len(b), 1)
        for (_, a), (_, b) in zip(trues, said, strict=True)
    ]
    return {
        "parsing_pa": sum(a == b for a, b in zip(trues, said, strict=True)) / len(lines),
        "parsing_ga": sum(
            said[i] in read and read[said[i]] == true_sets[trues[i]] for i in range(len(lines))
        ) / len(lines),
        "parsing_fga": harmonic(len(same)),
        "parsing_fta": harmonic(len(right)),
        "parsing_edit": sum(far) / len(lines),
        "parsing_unread": sum(b is NOTHING for _, b in said) / len(lines),
    }  # fmt: skip


def perturbed(template: str, others: list[str], rng: random.Random) -> str | None:
    """A parse of a template's line, wrong in one of the ways of parsers."""
    words = template.split()
    way = rng.randrange(12)
    if way == 0:
        return None
    if way == 1:
        return rng.choice(others)
    if way == 2:
        return template.replace("<*>", "<*><*>", 1)
    if way == 3 and words:
        words[rng.randrange(len(words))] = "<*>"
    if way == 4:
        return template.replace("<*>", str(rng.randrange(3)))
    if way == 5:
        return f" {template} "
    return " ".join(words) if way == 3 else template


SYSTEMS = ["Android", "Apache", "BGL", "HDFS", "HPC", "Hadoop", "Linux", "Mac", "OpenSSH", "OpenStack", "Spark"]
SYSTEMS.append("Zookeeper")


@pytest.mark.parametrize("system", SYSTEMS)
def test_perturbed_parses_of_loghub(shared, system):
    file = shared / "data" / "loghub" / system / f"{system}_2k.log_templates.csv"
    with open(file, newline="", encoding="utf-8") as stream:
        templates = [row["EventTemplate"] for row in csv.DictReader(stream)]
    rng = random.Random(system)
    weights = [1 / (i + 1) for i in range(len(templates))]  # some have most lines, as in logs
    chosen = rng.choices(templates, weights, k=150) + templates[:50]
    by_template = {each: perturbed(each, templates, rng) for each in set(templates)}
    lines = [Parsed(t, by_template[t] if rng.random() < 0.7 else perturbed(t, templates, rng)) for t in chosen]
    found = figures_of(log_parsing.tally(lines))
    assert found == pytest.approx(parsing_again(lines), abs=1e-12)
    assert 0 < found["parsing_pa"] < 1


def test_random_parses():
    rng = random.Random(1)
    pool = ["", "a", "a <*>", "b <*>", "b<*><*>", "b<*>", "<*>"]
    for _ in range(CASES):
        lines = [
            Parsed(rng.choice(pool[1:]), rng.choice([*pool, None]), rng.choice("xy")) for _ in range(rng.randint(1, 12))
        ]
        assert figures_of(log_parsing.tally(lines)) == pytest.approx(parsing_again(lines), abs=1e-12), lines


def anomaly_again(truths: list[bool], said: list[bool | None]) -> dict[str, float]:
    """By rates of each class, F1 as their harmonic mean, and MCC as the correlation of two rows of 0 and 1."""
    called = [(not truth) if one is None else one for truth, one in zip(truths, said, strict=True)]
    found = {
        "anomaly_accuracy": float(np.mean(np.array(truths) == np.array(called))),
        "anomaly_unread": float(np.mean([one is None for one in said])),
    }
    caught = [one for truth, one in zip(truths, called, strict=True) if truth]
    passed = [not one for truth, one in zip(truths, called, strict=True) if not truth]
    if caught:
        alarms = [truth for truth, one in zip(truths, called, strict=True) if one]
        precision, recall = (sum(alarms) / len(alarms) if alarms else 0.0), sum(caught) / len(caught)
        both = precision + recall
        f1 = 2 * precision * recall / both if both else 0.0
        found |= {"anomaly_precision": precision, "anomaly_recall": recall, "anomaly_f1": f1}
    if caught and passed:
        found["anomaly_balanced"] = (sum(caught) / len(caught) + sum(passed) / len(passed)) / 2
        varies = 0 < sum(called) < len(called)
        found["anomaly_mcc"] = float(np.corrcoef(truths, called)[0, 1]) if varies else 0.0
    return found


def test_random_verdicts():
    rng = random.Random(2)
    for _ in range(CASES):
        n, share = rng.randint(1, 12), rng.random()
        truths = [rng.random() < share for _ in range(n)]
        said = [rng.choice([True, False, False, truth, None]) for truth in truths]
        clusters = [rng.randrange(3) for _ in range(n)]
        found = figures_of(detection.tally(list(map(detection.Verdict, truths, said)), clusters))
        assert found == pytest.approx(anomaly_again(truths, said), abs=1e-12), (truths, said)


def diagnosis_again(truths: list[str], said: list[str | None]) -> dict[str, float]:
    f1s = []
    for label in set(truths):
        found = [one == label for one in said]
        true = [truth == label for truth in truths]
        both = sum(map(bool.__and__, found, true))
        precision, recall = both / sum(found) if any(found) else 0.0, both / sum(true)
        f1s.append(2 * precision * recall / (precision + recall) if both else 0.0)
    return {
        "diagnosis_accuracy": sum(a == b for a, b in zip(truths, said, strict=True)) / len(truths),
        "diagnosis_macro_f1": sum(f1s) / len(f1s),
        "diagnosis_unread": said.count(None) / len(said),
    }


def test_random_diagnoses():
    rng = random.Random(3)
    for _ in range(CASES):
        truths = rng.choices("abcd", k=rng.randint(1, 12))
        said = [rng.choice([truth, *"abcde", None]) for truth in truths]
        found = figures_of(diagnosis.tally(list(map(diagnosis.Diagnosed, truths, said)), [0] * len(truths)))
        assert found == pytest.approx(diagnosis_again(truths, said), abs=1e-12), (truths, said)


def squad_words(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in r"""!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~""")
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def test_random_short_answers():
    rng = random.Random(4)
    words = ["sshd", "The", "a", "10.0.0.1", "port-22", "fails", "!", "fails."]
    for _ in range(CASES):
        said, reference = (" ".join(rng.choices(words, k=rng.randint(0, 5))) for _ in range(2))
        ours, left = squad_words(said), squad_words(reference)
        n = len(ours) + len(left)
        exact, common = ours == left, 0
        for word in ours:
            if word in left:
                left.remove(word)
                common += 1
        found = log_qa.scores(said, reference)
        assert found["logqa_exact"] == exact, (said, reference)
        expected = 2 * common / n if common else float(n == 0)
        assert found["logqa_f1"] == pytest.approx(expected), (said, reference)


def rca_again(said: list[Failure], reference: list[Failure]) -> tuple[float, float]:
    asked = sum(bool(field) for failure in reference for field in failure)
    if len(said) != len(reference):
        return 0.0, 0.0

    def same(name: str, one: str, true: str) -> bool:
        if not true or not one:
            return False
        if name != "time":
            return one == true
        return abs((datetime.fromisoformat(one) - datetime.fromisoformat(true)).total_seconds()) <= 60

    def right(one: Failure, true: Failure) -> int:
        return sum(same(name, getattr(one, name), getattr(true, name)) for name in one._fields)

    best = max(sum(map(right, order, reference)) for order in itertools.permutations(said))
    return float(best == asked), best / asked


def test_random_failures():
    rng = random.Random(5)

    def failure(optional: bool) -> Failure:
        time = f"2021-03-04 14:{rng.randrange(56, 59)}:{rng.choice(['00', '01', '30'])}"
        component, reason = rng.choice(["db", "web"]), rng.choice(["cpu", "disk"])
        keep = [not optional or rng.random() < 0.7 for _ in range(3)]
        return Failure(*(text if kept else "" for text, kept in zip((time, component, reason), keep, strict=True)))

    for _ in range(CASES):
        reference = [failure(True) for _ in range(rng.randint(1, 4))]
        if not any(map(any, reference)):
            continue
        said = [failure(False) for _ in range(len(reference) if rng.random() < 0.9 else rng.randint(1, 4))]
        found = root_cause.scores(said, reference)
        assert (found["rca_solved"], found["rca_partial"]) == pytest.approx(rca_again(said, reference)), (
            said,
            reference,
        )
