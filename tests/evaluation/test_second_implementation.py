"""The figures of log tasks equal those of a second implementation that was written without sight of the first, on
perturbed parses of the twelve systems of loghub and of generated ones, and on 2,000 random cases of each task.

All go the way of an evaluation: an answer's text is read, the outcomes are tallied, the figures come from the sums.
"""

import csv
import json
import random
from collections.abc import Sequence

import pytest

from logtrain.evaluation import grounding, log_qa, root_cause
from logtrain.evaluation.agreement import agreement
from logtrain.evaluation.clusters import figures_of
from logtrain.evaluation.config import Task
from logtrain.evaluation.tasks import Outcome, majority_figures, read_answer, tallies
from logtrain.text.chat_template import Turn
from tests.support import second_implementation as second

CASES = 2000
SYSTEMS = ["Android", "Apache", "BGL", "HDFS", "HPC", "Hadoop", "Linux", "Mac", "OpenSSH", "OpenStack", "Spark"]
SYSTEMS.append("Zookeeper")
UNREADABLE = ["", " \n", "Either `a <*>` or `b <*>`.\nI cannot say.", "<think>a <*>"]


def outcomes_of(task: Task, answers: Sequence[str], truths: Sequence[str], scopes: Sequence[str] = ()) -> list[Outcome]:
    labels = [*sorted(set(truths)), "never true"]
    scopes = scopes or [""] * len(truths)
    rows = zip(answers, truths, scopes, strict=True)
    return [Outcome(task, truth, read_answer(task, answer, labels), scope, b"") for answer, truth, scope in rows]


def figures(outcomes: list[Outcome]) -> dict[str, float | None]:
    """Those of the package, None for one that is not defined."""
    task = outcomes[0].task
    found = {name.removeprefix(f"{task}_"): value for name, value in figures_of(tallies(outcomes)[task]).items()}
    return {**dict.fromkeys(second.anomaly([True], [True]) if task == "anomaly" else ()), **found}


def the_same(found: dict, expected: dict) -> bool:
    return found == {
        name: value if value is None else pytest.approx(value, rel=0, abs=1e-12) for name, value in expected.items()
    }


# Parsing


def systematic(templates: list[str], draw: random.Random) -> dict[str, tuple[str, str]]:
    """What a parser makes of each template, in one half of its lines and in the other."""
    made = {}
    for template in templates:
        words = template.split(" ")
        at = draw.randrange(len(words))
        letter = draw.randrange(len(template))
        changed = [
            draw.choice(templates),  # merged with another group
            template.replace("<*>", draw.choice(["0", "root", "/var"]), 1),  # a wildcard less
            " ".join([*words[:at], "<*>", *words[at + 1 :]]),  # one more
            template[:letter] + template[letter + 1 :],  # typing errors
            template[:letter] + "x" + template[letter:],
            template.replace("<*>", "<*><*>"),  # adjacent ones, which are one
            template.replace("<*>", "<*> <*>"),  # which are not
            f" {template}\n",
        ]
        one = draw.choice([template, template, *changed])
        made[template] = (one, draw.choice([one, one, *changed]))  # two different ones: a group is split
    return made


def perturbed(truths: list[str], draw: random.Random) -> list[str]:
    """The answer for each line."""
    made = systematic(sorted(set(truths)), draw)
    answers = [draw.choice(made[truth]) for truth in truths]
    for line in draw.sample(range(len(truths)), len(truths) // 20):
        answers[line] = draw.choice([*UNREADABLE, *made[draw.choice(truths)]])
    return answers


def check_parse(answers: list[str], truths: list[str], systems: list[str]) -> dict[str, float]:
    outcomes = outcomes_of("parsing", answers, truths, systems)
    expected = second.parsing([outcome.read for outcome in outcomes], truths, systems)
    assert the_same(figures(outcomes), expected), (figures(outcomes), expected)
    return expected


def lines_of_template(file, templates: list[str]) -> list[str]:
    """The template of each line of a log that ends like one of them, the one with most letters outside of wildcards."""
    by_length = sorted(templates, key=lambda template: -len(template.replace("<*>", "")))
    found = (
        next((template for template in by_length if fits(line, template.split("<*>"))), None)
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
    )
    return [template for template in found if template is not None]


def fits(line: str, parts: list[str]) -> bool:
    """Whether the parts stand in the line, one behind the other, the last at its end."""
    at = 0
    for part in parts[:-1]:
        found = line.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return line.endswith(parts[-1]) and len(line) - len(parts[-1]) >= at


@pytest.mark.parametrize("system", SYSTEMS)
def test_perturbed_parses_of_loghub(shared, system):
    folder = shared / "data" / "loghub" / system
    with open(folder / f"{system}_2k.log_templates.csv", newline="", encoding="utf-8") as stream:
        templates = [row["EventTemplate"].strip() for row in csv.DictReader(stream)]
    truths = lines_of_template(folder / f"{system}_2k.log", templates) + templates
    assert len(truths) > 1700, "nearly all lines"
    assert [read_answer("parsing", template, ()) for template in templates] == templates, "read as they are"
    draw = random.Random(system)
    for _ in range(2):
        found = check_parse(perturbed(truths, draw), truths, [""] * len(truths))
        assert 0 < found["pa"] < 1 and 0 < found["unread"] < 1


def test_perturbed_generated_parses():
    draw = random.Random(1)
    words = ["session", "opened", "for", "user", "<*>", "<*>", "port", "closed", "blk_<*>", "at", "<*>:<*>"]
    for _ in range(100):
        templates = sorted({" ".join(draw.choices(words, k=draw.randint(1, 7))) for _ in range(20)})
        truths = draw.choices(templates, [1 / (i + 1) for i in range(len(templates))], k=120)
        check_parse(perturbed(truths, draw), truths, draw.choices(["one", "two"], k=120))


def test_random_parses():
    draw = random.Random(2)
    pool = ["a", "a <*>", "b <*>", "b<*><*>", "b<*>", "<*>", "<*> <*>", "b"]
    for _ in range(CASES):
        n = draw.randint(1, 12)
        answers, truths = draw.choices(pool + UNREADABLE, k=n), draw.choices(pool, k=n)
        check_parse(answers, truths, draw.choices("xy", k=n))


# Labels

SAID = {True: ["abnormal", "It is an **anomaly**."], False: ["Normal.", "This is not abnormal"], None: ["", "No idea."]}


def test_random_verdicts():
    draw = random.Random(3)
    names = {True: "abnormal", False: "normal"}
    for _ in range(CASES):
        share, n = draw.random(), draw.randint(1, 12)
        truths = [draw.random() < share for _ in range(n)]
        said = [draw.choice([truth, truth, True, False, None]) for truth in truths]
        outcomes = outcomes_of("anomaly", [draw.choice(SAID[one]) for one in said], [names[truth] for truth in truths])
        assert the_same(figures(outcomes), second.anomaly(said, truths)), (said, truths)
        constant = second.anomaly([second.commonest(truths)] * n, truths)
        beside = {f"anomaly_{name}": value for name, value in constant.items() if value is not None}
        assert the_same(majority_figures(outcomes), {name: beside[name] for name in beside if "unread" not in name})


def test_random_diagnoses():
    draw = random.Random(4)
    for _ in range(CASES):
        truths = draw.choices(["disk", "disk full", "network", "Memory"], k=draw.randint(1, 12))
        known = [*sorted(set(truths)), "never true"]
        said = [draw.choice([truth, truth, *known, None]) for truth in truths]
        answers = ["No idea." if one is None else draw.choice([one, f"The cause: {one.upper()}."]) for one in said]
        outcomes = outcomes_of("diagnosis", answers, truths)
        assert the_same(figures(outcomes), second.diagnosis(said, truths)), (said, truths)
        constant = second.diagnosis([second.commonest(truths)] * len(truths), truths)
        del constant["unread"]
        assert the_same(majority_figures(outcomes), {f"diagnosis_{name}": each for name, each in constant.items()})


# Scores of an answer


def test_random_short_answers():
    draw = random.Random(5)
    words = [
        "sshd",
        "The",
        "a",
        "An",
        "10.0.0.1",
        "port-22",
        "fails",
        "!",
        "fails.",
        "a\u2013b",
        "\u00c4",
        "the\n",
        "_",
    ]
    for _ in range(CASES):
        answer, reference = (" ".join(draw.choices(words, k=draw.randint(0, 5))) for _ in range(2))
        said = answer if answer.strip() else None
        found = log_qa.scores(read_answer("logqa", answer, ()), reference)
        assert found["logqa_unread"] == (said is None)
        assert found["logqa_exact"] == second.exact_match(said, reference), (answer, reference)
        assert found["logqa_f1"] == pytest.approx(second.token_f1(said, reference), rel=0, abs=1e-12)


def failure(draw: random.Random, fields: Sequence[str]) -> dict[str, str]:
    time = f"2021-03-0{draw.choice('344')} {draw.choice(['23:59', '00:00', '00:01'])}:{draw.choice(['29', '30', '31'])}"
    made = {
        "time": draw.choice([time, time, time, "at noon"]),
        "component": draw.choice(["db", "web", "Db"]),
        "reason": draw.choice(["cpu", "disk"]),
    }
    return {field: made[field] for field in fields}


def test_random_root_causes():
    draw = random.Random(6)
    long = {
        "time": "root cause occurrence datetime",
        "component": "root cause component",
        "reason": "root cause reason",
    }
    everything = list(long)
    for _ in range(CASES):
        truth = [
            failure(draw, draw.sample(everything, draw.randint(1, 3))) for _ in range(draw.choice([1, 1, 2, 3, 4]))
        ]
        asked = [{**one, **({"time": "2021-03-04 00:00:30"} if "time" in one else {})} for one in truth]
        num = draw.choice([len(asked)] * 8 + [1, 2, 5])
        answer = [failure(draw, draw.sample(everything, draw.randint(1, 3))) for _ in range(num)]
        for i in draw.sample(range(num), draw.randint(0, num)):  # some are right, often all
            answer[i] = {**answer[i], **asked[i % len(asked)]}
        draw.shuffle(answer)
        named = [{long[field]: value for field, value in one.items()} for one in answer]
        written = draw.choice([json.dumps(answer), json.dumps({str(i): each for i, each in enumerate(named)})])
        reference = root_cause.failures(json.dumps(asked))
        assert reference is not None
        found, expected = root_cause.scores(root_cause.failures(written), reference), second.root_cause(answer, asked)
        assert found["rca_partial"] == pytest.approx(expected["score"], rel=0, abs=1e-12), (answer, asked)
        assert found["rca_solved"] == expected["solved"], (answer, asked)


def entity(draw: random.Random) -> str:
    number = draw.randint(10, 40)
    return draw.choice([
        f"10.0.0.{number}", f"10.0.{number}.1", f"/var/log/d{number}.log", f"/usr/lib/p{number}/x{number % 3}",
        f"{number * 1000 + 7}", f"{number}.5", f"blk_-{number}", f"node-{number}", f"session_{number}",
    ])  # fmt: skip


def test_random_answers_that_name_something():
    draw = random.Random(7)
    filler = ["failed", "again", "because", "the", "disk", "died", "see"]
    for _ in range(CASES):
        pool = [entity(draw) for _ in range(6)]
        log, answer, reference = (
            " ".join(draw.choice([draw.choice(filler), draw.choice(pool), entity(draw)]) for _ in range(n)) + end
            for n, end in ((40, ""), (draw.randint(0, 8), "."), (draw.randint(0, 8), ""))
        )
        found, expected = (
            grounding.scores(answer, [Turn("user", log)], reference),
            second.grounding(answer, log, reference),
        )
        assert the_same(found, {"grounded": expected["grounded"], "recalled": expected["recall"]}), (answer, reference)


def test_random_agreements():
    draw = random.Random(8)
    for _ in range(CASES):
        one = draw.choices("abc"[: draw.randint(1, 3)], k=draw.randint(0, 12))
        other = [draw.choice([label, label, *"abc"[: draw.randint(1, 3)]]) for label in one]
        expected = second.kappa(one, other)
        assert agreement(one, other).kappa == (None if expected is None else pytest.approx(expected, rel=0, abs=1e-12))
