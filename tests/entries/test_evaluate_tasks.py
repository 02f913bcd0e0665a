"""Answers are scored as the task that they are for: what is read from them, figures, groups, and what is refused."""

import json
from pathlib import Path

import pytest

from logtrain import prepare
from logtrain.evaluation.config import EvaluateConfig
from logtrain.evaluation.question_set import read_question_set
from tests.support.evaluation import evaluated, read
from tests.support.scripted_server import scripted

LINES = [f"disk sd{name} fails at {i}" for i, name in enumerate("abcdefgh")]
ROWS = [
    *({"q": f"Is it normal? {line}", "a": "abnormal" if i % 4 == 0 else "normal", "kind": "anomaly",
       "system": "BGL" if i % 2 else "HDFS"} for i, line in enumerate(LINES)),
    *({"q": f"Parse: {line}", "a": "disk <*> fails at <*>", "kind": "parsing", "system": "BGL"} for line in LINES[:3]),
    {"q": "Which? disk fails", "a": "disk", "kind": "diagnosis", "system": "HDFS"},
    {"q": "Which? net fails", "a": "net", "kind": "diagnosis", "system": "HDFS"},
    {"q": "Who failed at 10.0.0.5?", "a": "the sshd", "kind": "logqa", "system": "HDFS"},
    {"q": "Root cause?", "a": '[{"component": "db"}]', "kind": "rca", "system": "BGL"},
    {"q": "Explain", "a": "It is fine", "kind": "text", "system": "BGL"},
]  # fmt: skip
RENAMED = ["--columns", "q=instruction", "a=output", "--kind_column", "kind"]


def good(messages: list[dict]) -> str:
    """Answers as a good model's, in many words."""
    question = messages[-1]["content"]
    if question.startswith("Is it"):
        return "I think that this is **abnormal**." if int(question.split()[-1]) % 4 == 0 else "normal"
    if question.startswith("Parse"):
        return "The template is `disk <*><*> fails at <*>`."
    if question.startswith("Which"):
        return "Category: " + question.split()[1]
    others = {"Who": "Answer: sshd", "Root": '```json\n{"1": {"component": "db"}}\n```'}
    return others.get(question.split()[0], "It is fine")


def bad(messages: list[dict]) -> str:
    return "I do not know 10.9.9.9"


def run_of(tmp_path: Path, folder: Path, answer, *flags: str, rows=ROWS) -> tuple[dict, list[dict]]:
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows))
    with scripted(answer) as server:
        remote = ["--backend", "openai", "--base_url", server.url, "--prompts", "messages", "--no_check_server"]
        remote += ["--max_new_tokens", "64"]
        models = ["--models", f"m={folder}", "--data", str(data), "--format", "alpaca", "--run", str(tmp_path / "run")]
        assert evaluated([*models, *remote, *RENAMED, *flags]) == 0
    return read(tmp_path / "run")


def test_answers_are_read_and_scored_by_row(chat_models, tmp_path, capsys):
    scores, samples = run_of(tmp_path, chat_models["a"], good, "--split_by", "system", "--unseen", "HDFS")
    model = scores["models"]["m"]
    metrics = model["metrics"]
    for name in ("anomaly_f1", "anomaly_mcc", "parsing_pa", "parsing_fga", "diagnosis_macro_f1", "logqa_f1"):
        assert metrics[name]["mean"] == 1, name
    assert metrics["rca_solved"]["mean"] == 1
    assert (metrics["anomaly_accuracy"]["majority"], metrics["anomaly_f1"]["majority"]) == (6 / 8, 0)
    assert (metrics["anomaly_f1"]["n"], metrics["anomaly_f1"]["clusters"]) == (8, 8), "lines differ by a letter"
    assert metrics["parsing_pa"]["clusters"] == 1 and metrics["parsing_pa"]["low"] is None
    of_unseen, of_seen = model["groups"]["unseen"], model["groups"]["seen"]
    assert (of_unseen["anomaly_accuracy"]["n"], of_seen["anomaly_accuracy"]["n"]) == (4, 4)
    assert "anomaly_f1" not in of_seen, "no row of BGL is abnormal"
    assert "parsing_pa" not in of_unseen and of_seen["parsing_pa"]["n"] == 3
    first = samples[0]
    assert (first["scored_as"], first["read"], first["group"], first["unseen"]) == ("anomaly", "abnormal", "HDFS", True)
    page = (tmp_path / "run" / "compare.html").read_text()
    for shown in ("Anomaly F1", "majority 0.7500", "unseen groups", "Parsing FGA", "read: abnormal"):
        assert shown in page, shown
    out = capsys.readouterr().out
    assert "score model=m group=unseen metric=anomaly_f1 mean=1" in out


def test_what_cannot_be_read_is_wrong_and_counted(chat_models, tmp_path):
    metrics = run_of(tmp_path, chat_models["a"], bad)[0]["models"]["m"]["metrics"]
    for task in ("anomaly", "diagnosis", "rca"):
        assert metrics[f"{task}_unread"]["mean"] == 1, task
    assert (metrics["anomaly_accuracy"]["mean"], metrics["anomaly_f1"]["mean"]) == (0, 0)
    assert metrics["parsing_pa"]["mean"] == metrics["logqa_exact"]["mean"] == metrics["rca_partial"]["mean"] == 0
    assert metrics["grounded"]["mean"] == 0, "no question names 10.9.9.9"


def test_one_task_for_all_rows(chat_models, tmp_path):
    rows = [{**row, "kind": "x"} for row in ROWS[:8]]
    found, _ = run_of(tmp_path, chat_models["a"], good, "--kind_column", "", "--task", "anomaly",
                      "--ignore_columns", "kind", "system", rows=rows)  # fmt: skip
    assert found["models"]["m"]["metrics"]["anomaly_f1"]["mean"] == 1
    assert found["models"]["m"]["groups"] == {}


def questions_of(tmp_path: Path, rows: list[dict], **settings):
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows))
    return read_question_set(EvaluateConfig(models=("m=x",), data=str(data), format="alpaca", run="r", **settings))


PAIR = {"instruction": "why", "output": "normal"}


@pytest.mark.parametrize(
    ("row", "settings", "told"),
    [
        ({"output": "bad"}, {"task": "anomaly"}, r"row 0: 'bad' is neither normal nor abnormal"),
        ({"output": "fan"}, {"task": "diagnosis", "labels": ("disk",)}, "row 0: 'fan' is none of the labels"),
        ({"output": "db fails"}, {"task": "rca"}, "row 0: 'db fails' does not give 1 to 12 failures"),
        ({"kind": "parse"}, {"kind_column": "kind"}, "row 0: kind = 'parse', not one of text, parsing"),
        ({}, {"kind_column": "kind"}, 'row 0: no "kind"'),
        ({}, {"split_by": "system"}, 'row 0: no "system", which split_by goes by'),
    ],
)
def test_rows_that_do_not_fit_their_task_are_refused(tmp_path, row, settings, told):
    with pytest.raises(ValueError, match=told):
        questions_of(tmp_path, [PAIR | row], **settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"task": "anomaly", "kind_column": "kind"}, "give one of them"),
        ({"labels": ("a",)}, "only those of --task diagnosis"),
        ({"unseen": ("a",)}, "give --split_by"),
        ({"columns": ("a=reply",)}, "expected THEIRS=OURS, ours one of .*output"),
        ({"prepared": "/none"}, "no such prepared folder"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, told):
    with pytest.raises(ValueError, match=told):
        questions_of(tmp_path, [PAIR], **settings)


def test_too_many_labels_are_no_closed_set(tmp_path):
    rows = [{"instruction": "why", "output": f"cause {i}"} for i in range(101)]
    assert len(questions_of(tmp_path, rows[:100], task="diagnosis").labels) == 100
    with pytest.raises(ValueError, match="101 different references of diagnosis, more than 100"):
        questions_of(tmp_path, rows, task="diagnosis")


def test_the_groups_that_training_held_out_are_unseen(chat_models, tmp_path):
    rows = [{"instruction": f"why {i}", "output": f"x{i}", "system": "AB"[i % 2]} for i in range(40)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    flags = ["--input", str(tmp_path / "train.json"), "--format", "alpaca", "--tokenizer", str(chat_models["a"])]
    flags += ["--output", str(tmp_path / "out"), "--split_by", "system", "--valid_fraction", "0.5", "--seq_len", "64"]
    prepare.main(flags)
    (held,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["held_out_groups"]
    found = questions_of(tmp_path, rows[:4], prepared=str(tmp_path / "out"))
    assert [found.is_unseen(question) for question in found.questions] == ["AB"[i % 2] == held for i in range(4)]
