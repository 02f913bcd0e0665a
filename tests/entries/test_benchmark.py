"""A suite is one command: every set, seen and unseen apart, beside published figures; what is wrong in it is told."""

import json
from pathlib import Path

import pytest

from logtrain import benchmark
from logtrain.core.untrusted import read_sealed
from logtrain.evaluation.config import BenchmarkConfig
from logtrain.evaluation.suite import config_of, read_suite
from tests.support import ROOT
from tests.support.scripted_server import scripted

SUITE = """
title = "Small <suite>"
[[set]]
name = "anomaly"
file = "anomaly.json"
format = "alpaca"
task = "anomaly"
split_by = "system"
figures = ["anomaly_f1", "anomaly_accuracy"]
[[set]]
name = "words"
file = "words.json"
format = "alpaca"
max_new_tokens = 7
figures = ["fuzzy", "json_valid"]
[[published]]
set = "anomaly"
system = "LogX & co"
figure = "anomaly_f1"
value = 0.5
source = "a paper"
"""
LINES = [f"disk sd{name} fails at {i}" for i, name in enumerate("abcdefgh")]
ANOMALY = [
    {"instruction": line, "output": ["abnormal", "normal"][i % 2], "system": ["A", "B"][i // 4]}
    for i, line in enumerate(LINES)
]


def right_on_a(messages: list[dict]) -> str:
    """Calls every line abnormal that has an even number, and of system B every line."""
    number = int(messages[-1]["content"].split()[-1])
    return "abnormal" if number % 2 == 0 or number >= 4 else "normal"


def suite_in(folder: Path, text: str = SUITE) -> list[str]:
    (folder / "suite.toml").write_text(text)
    (folder / "anomaly.json").write_text(json.dumps(ANOMALY))
    (folder / "words.json").write_text(json.dumps([{"instruction": "disk 1", "output": "normal"}]))
    return ["--suite", str(folder / "suite.toml"), "--data", str(folder), "--run", str(folder / "run"),
            "--max_new_tokens", "9"]  # fmt: skip


def test_a_suite(chat_models, tmp_path, capsys):
    arguments = [*suite_in(tmp_path), "--models", f"m={chat_models['a']}", "--unseen", "B"]
    with scripted(right_on_a) as server:
        arguments += ["--backend", "openai", "--base_url", server.url, "--prompts", "messages", "--no_check_server"]
        assert benchmark.main(arguments) == 0
        asked = len(server.seen)
        assert benchmark.main([*arguments, "--resume", "auto"]) == 0
    assert asked == len(server.seen) == 9, "nothing is asked twice"
    assert {body["max_tokens"] for body in server.seen} == {7, 9}, "a set's own settings count before the command's"
    found = read_sealed(tmp_path / "run" / "benchmark.json")
    anomaly, words = found["sets"]
    assert list(anomaly["parts"]) == ["all", "seen", "unseen"] and list(words["parts"]) == ["all"]
    f1 = {part: figures["anomaly_f1"]["m"]["mean"] for part, figures in anomaly["parts"].items()}
    assert f1 == pytest.approx({"all": 8 / 10, "seen": 1, "unseen": 4 / 6})
    assert anomaly["parts"]["all"]["anomaly_accuracy"]["m"]["majority"] == 0.5
    assert list(words["parts"]["all"]) == ["fuzzy"], "json_valid is no score where no reference is JSON"
    assert anomaly["published"][0]["system"] == "LogX & co" and words["published"] == []
    page = (tmp_path / "run" / "benchmark.html").read_text()
    for shown in (
        "Small &lt;suite&gt;",
        "LogX &amp; co",
        "a paper",
        "unseen groups",
        "0.800",
        'href="anomaly/compare.html"',
    ):
        assert shown in page, shown
    assert (tmp_path / "run" / "anomaly" / "compare.html").exists()
    assert "benchmark set=anomaly rows=unseen model=m figure=anomaly_f1 mean=0.666667" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"fuzzy"', '"fuzy"', "figure 'fuzy' is none of"),
        ('set = "anomaly"', 'set = "x"', "set 'x' is none of anomaly, words"),
        ('name = "words"', 'name = "anomaly"', "each once"),
        ('source = "a paper"', 'source = ""', "a figure needs its source"),
        ("value = 0.5", 'value = "0.5"', "expected a number"),
        ("title =", "title", "not TOML"),
        ('task = "anomaly"', 'kind_column = "k"\ntask = "anomaly"', "set anomaly: task = anomaly and kind_column = k"),
        ('task = "anomaly"', 'task = "diagnose"', "diagnose"),
        ('task = "anomaly"', 'tsk = "anomaly"', "tsk"),
        ('file = "words.json"', 'file = "none.json"', "none.json: no such file"),
    ],
)
def test_what_is_wrong_in_a_suite_is_told_before_anything_is_asked(chat_models, tmp_path, old, new, told):
    arguments = suite_in(tmp_path, SUITE.replace(old, new, 1))
    with pytest.raises(ValueError, match=told):
        benchmark.main([*arguments, "--models", f"m={chat_models['a']}"])
    assert not (tmp_path / "run").exists()


def test_what_is_said_once_counts_for_every_set(tmp_path):
    suite_in(tmp_path)
    config = BenchmarkConfig(
        suite=str(tmp_path / "suite.toml"), data=str(tmp_path), models=("m=x",), run="r", backend="openai",
        base_url="http://x/v1", check_server=False, max_sequences=3, unseen=("B",),
    )  # fmt: skip
    anomaly, words = (config_of(config, facts) for facts in read_suite(tmp_path / "suite.toml")["set"])
    for each in (anomaly, words):
        assert (each.check_server, each.max_sequences, each.models) == (False, 3, ("m=x",))
    assert (anomaly.unseen, words.unseen) == (("B",), ()), "only a set that has groups"


def test_the_suite_of_logs_is_whole_and_its_files_are_those_that_are_written():
    suite = read_suite(ROOT / "launch" / "suites" / "logs.toml")
    assert [one["file"] for one in suite["set"]] == ["parsing.json", "anomaly.json", "interpretation.json"]
    assert all(0 <= row["value"] <= 1 for row in suite["published"])
    sources = {row["source"].split(",")[0].split()[0] for row in suite["published"]}
    assert sources == {"LinDuoming/LogEval", "lunyiliu/LogLM", "guanwei49/LogLLM"}
