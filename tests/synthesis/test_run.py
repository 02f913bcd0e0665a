"""`logtrain synthesise` with a teacher that errs: what is counted, what it costs, and what a kill leaves."""

import json
import random
import signal
from collections import Counter

import pytest

from logtrain.core.entry import INTERRUPTED
from logtrain.synthesis import run
from logtrain.synthesis.journal import FILE
from tests.support.program import Program
from tests.support.synthesising import flags_for, good, log_in, report_of, rows_of, synthesise, write_log
from tests.support.teacher import Say, teacher

TASKS = 5


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(run, "FIRST_PAUSE", 0.01)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    return [f"{name}={write_log(folder / f'{name}.log', 60, seed)}" for seed, name in enumerate(("alpha", "beta"))]


def kind_of(say: Say) -> str:
    """What a request that was not answered is counted as."""
    if say.status != 200:
        return str(say.status)
    return "timeout" if say.hang or say.drip else "reply" if say.raw is not None else ""


def wrong_answers(asked) -> dict[str, Say]:
    """Answers that are no rows, by the reason."""
    line = log_in(asked)[0] if log_in(asked) else ""
    text = good(asked).text
    in_json = "{" in asked["messages"][1]["content"]
    return {
        "cut": Say(text[: len(text) // 2], finish="length"),
        "unprintable": Say(f"{text}\x1b[2J"),
        "refusal": Say("I\u2019m sorry, but I cannot help with logs of this kind. " * 3),
        "json" if in_json else "length": Say('{"turns": [{' if in_json else "ok"),
        "schema" if in_json else "language": Say(
            '{"anomaly": 1}' if in_json else "Der Server ist nicht mit dem Netz und der Welt verbunden, " * 4
        ),
        "copy" if not in_json else "json ": Say("\n".join(log_in(asked)) if not in_json else '{"a":' * 2000),
        "ungrounded": Say(
            f"The host 10.9.8.7 and 172.31.0.9 failed at 23:59:58 with 0xdeadbeef00, it is so. {line[:0]}" * 2
        )
        if not in_json
        else Say("{}}{"),
    }


FAULTS = [
    Say(status=429, headers={"Retry-After": "0"}),
    Say(status=500),
    Say(status=503),
    Say("late", hang=60),
    Say("slow", drip=True),
    Say(raw=b"<html>no</html>"),
    Say(raw=b"[" * 5000),
    Say(raw=b"{" + b" " * (1 << 22) + b"}"),
    Say(raw=b'{"choices": [{"message": {"content": 3}}]}'),
]


def test_a_teacher_that_errs_is_counted_exactly(tmp_path, logs):
    """Each prompt first gets a fault, then a wrong answer, then a good one."""
    reasons: Counter[str] = Counter()
    faults = iter(FAULTS * 100)
    wrong: Counter[str] = Counter()

    def script(asked, count):
        if count == 0:
            return next(faults)
        if count > 1:
            return good(asked)
        answers = wrong_answers(asked)
        reason = min(answers, key=lambda name: wrong[name])
        wrong[reason] += 1
        reasons[{"json ": "json"}.get(reason, reason)] += answers[reason] != Say("{}}{")
        reasons["schema"] += answers[reason] == Say("{}}{")
        return answers[reason]

    with teacher(script) as fake:
        status = synthesise(
            tmp_path / "run", fake, logs, "--limit", "36", "--timeout", "3", "--concurrency", "8", "--tries", "3"
        )
    told, rows = report_of(tmp_path / "run"), rows_of(tmp_path / "run")
    assert status == 0 and fake.most <= 8 + sum(bool(say.hang) for say in fake.said)  # who hung is still at it
    num = told["jobs"]["all"]
    assert num == len(rows) == told["rows"]["all"] == 36 < told["chunks"]["kept"] * TASKS
    assert sorted(row["job"] for row in rows) == list(range(num))
    assert told["failures"] == Counter(kind for say in fake.said if (kind := kind_of(say)))
    assert told["rejected"] == +reasons and len(told["rejected"]) >= 9
    assert told["requests"] == len(fake.said) == 3 * num
    assert told["answers"] == 2 * num
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert Counter(one["reason"].partition(":")[0] for one in rejected) == told["rejected"]
    counted = sum(told["tokens"].values())
    assert fake.spent - counted <= sum(told["uncertain_tokens"].values())
    assert counted <= fake.spent


def test_rejected_answers_are_asked_for_again_with_another_seed(tmp_path, logs):
    with teacher(lambda asked, count: Say("no")) as fake:
        synthesise(tmp_path / "run", fake, logs, "--attempts", "3", "--tasks", "summary", "--limit", "4")
    told = report_of(tmp_path / "run")
    assert told["rejected"] == {"length": 12} and told["rows"]["all"] == 0
    seeds = Counter((asked["messages"][1]["content"], asked["seed"]) for asked in fake.asked)
    assert len(seeds) == 12


@pytest.mark.slow
def test_killed_ten_times_and_resumed_no_row_is_lost_or_doubled(tmp_path, logs):
    def script(asked, count):
        draws = random.Random(asked["messages"][1]["content"])
        return Say(status=500) if draws.random() < 0.1 and not count else good(asked)

    with teacher(script) as fake:
        assert synthesise(tmp_path / "whole", fake, logs, "--concurrency", "4") == 0
    with teacher(script) as fake:
        fake.delay = 0.01
        flags = flags_for(tmp_path / "run", fake, logs, "--concurrency", "4")
        journal = tmp_path / "run" / FILE
        for kill in range(10):
            size = journal.stat().st_size if journal.exists() else 0
            program = Program(
                [*flags, "--resume", "auto" if kill else "none"], tmp_path / "out", entry="logtrain.synthesise"
            )
            program.until(lambda size=size: journal.exists() and journal.stat().st_size > size + 4000)
            program.send(signal.SIGKILL)
            assert program.wait() == [-signal.SIGKILL]
            if kill % 3 == 0:
                with open(journal, "ab") as stream:
                    stream.write(b'{"event":"answer","job":1,"te')  # as a lost page of a file leaves it
        assert synthesise(tmp_path / "run", None, logs, *flags[-4:], "--base_url", fake.url, "--teacher", "wise",
                          "--resume", "auto") == 0  # fmt: skip
    told = report_of(tmp_path / "run")
    for name in ("train.jsonl", "valid.jsonl", "valid_systems.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    numbers = [row["job"] for row in rows_of(tmp_path / "run")]
    assert sorted(numbers) == list(range(told["jobs"]["all"]))
    events = [json.loads(line) for line in journal.read_bytes().splitlines() if line.endswith(b"}")]
    answered = [event["job"] for event in events if event["event"] == "answer"]
    assert sorted(answered) == sorted(set(answered))
    assert told["lost"] >= 10
    spent = sum(told["tokens"].values()) + sum(told["uncertain_tokens"].values())
    assert sum(told["tokens"].values()) < fake.spent <= spent


@pytest.mark.parametrize("budget", [["--budget_tokens", "20000"], ["--budget_dollars", "0.03"]])
def test_a_budget_is_never_exceeded_and_a_greater_one_goes_on(tmp_path, logs, budget):
    more = ["--price_input", "2", "--price_output", "1", "--max_new_tokens", "500", "--concurrency", "4", *budget]
    with teacher(good) as fake:
        assert synthesise(tmp_path / "run", fake, logs, *more) == 0
        told, most = report_of(tmp_path / "run"), float(budget[1])
        tokens, dollars = sum(told["tokens"].values()), told["dollars"]
        assert told["ended"] == "the budget is spent"
        spent = tokens if budget[0] == "--budget_tokens" else dollars
        assert fake.spent == tokens and most * 0.5 < spent <= most
        assert 0 < len(rows_of(tmp_path / "run")) == told["rows"]["all"] < told["jobs"]["all"]
        before = len(fake.said)
        more[-1] = str(1e6 if budget[0] == "--budget_dollars" else 10**9)
        assert synthesise(tmp_path / "run", fake, logs, *more, "--resume", "auto") == 0
        assert report_of(tmp_path / "run")["rows"]["all"] == len(fake.said) == told["jobs"]["all"] > before


def test_answers_that_are_not_counted_cost_the_most_that_they_may(tmp_path, logs):
    def script(asked, count):
        return Say(good(asked).text, has_usage=False)

    with teacher(script) as fake:
        synthesise(tmp_path / "run", fake, logs, "--limit", "6", "--max_new_tokens", "700")
    told = report_of(tmp_path / "run")
    assert told["tokens"] == {"prompts": 0, "answers": 0} and told["rows"]["all"] == 6
    assert told["uncertain_tokens"]["answers"] == 6 * 700
    assert told["uncertain_tokens"]["prompts"] >= fake.spent - 6 * 700


def test_a_server_that_refuses_all_ends_the_run_which_goes_on_later(tmp_path, logs):
    broken = {"is": True}

    def script(asked, count):
        return Say(status=401, raw=b'{"error": "no key"}') if broken["is"] else good(asked)

    with teacher(script) as fake:
        with pytest.raises(ValueError, match=r"not answered: 401: .*no key.*; --resume auto goes on"):
            synthesise(tmp_path / "run", fake, logs, "--concurrency", "2")
        assert len(fake.said) <= 4
        broken["is"] = False
        assert synthesise(tmp_path / "run", fake, logs, "--concurrency", "2", "--resume", "auto") == 0
        broken["is"] = True
        with pytest.raises(ValueError, match="with least_lines = 5, now it is 4"):
            synthesise(tmp_path / "run", fake, logs, "--concurrency", "2", "--resume", "auto", "--least_lines", "4")
    told = report_of(tmp_path / "run")
    assert told["rows"]["all"] == told["jobs"]["all"] and told["tokens"]["prompts"] > 0


def test_a_stop_takes_what_is_under_way(tmp_path, logs):
    with teacher(good) as fake:
        fake.delay = 0.2
        flags = flags_for(tmp_path / "run", fake, logs, "--concurrency", "4")
        program = Program(flags, tmp_path / "out", entry="logtrain.synthesise")
        program.until(lambda: len(fake.said) >= 6)
        program.send(signal.SIGTERM)
        assert program.wait() == [INTERRUPTED]
    told = report_of(tmp_path / "run")
    assert told["ended"] == "stopped" and told["lost"] == 0
    assert told["answers"] == len(fake.said) == told["rows"]["all"] < told["jobs"]["all"]
    assert "taking what is under way" in (tmp_path / "out").read_text()
