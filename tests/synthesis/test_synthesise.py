"""`logtrain synthesise`: what its settings change, what its rows are good for, and what a user's mistake says."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from logtrain.data.conversations import conversations
from logtrain.data.documents import documents
from logtrain.data.files import InputFile
from logtrain.data.lines import BadRow
from logtrain.synthesis import run
from logtrain.synthesis.config import SynthesiseConfig
from logtrain.synthesis.prompts import read_prompts
from logtrain.synthesise import main
from tests.support import ROOT, chats
from tests.support.synthesising import good, report_of, rows_of, synthesise, write_log
from tests.support.teacher import Say, teacher

DIMENSIONS = ["grok", "insight", "cause", "components", "forecast"]
OWN = """
role = "You know {system}."
[tasks.short]
ask = ["What is {log} in {system}?"]
teacher = "{question} Say it in a line: {log}"
least_chars = 3
"""


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(run, "FIRST_PAUSE", 0.01)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    return [f"{name}={write_log(folder / f'{name}.log', 30, seed)}" for seed, name in enumerate(("alpha", "beta"))]


@pytest.mark.parametrize("form", ["messages", "sharegpt"])
def test_chats_are_rows_that_prepare_reads(tmp_path, logs, form):
    with teacher(good) as fake:
        synthesise(tmp_path / "run", fake, logs, "--rows", form)
    read = [row for name in ("train", "valid_systems")
            for row in conversations(InputFile(tmp_path / "run" / f"{name}.jsonl"), form)]  # fmt: skip
    assert not [row for row in read if isinstance(row, BadRow)]
    rows = rows_of(tmp_path / "run")
    assert len(read) == len(rows) - len((tmp_path / "run" / "valid.jsonl").read_text().splitlines())
    read = [row for row in read if not isinstance(row, BadRow)]
    assert {row.domain for row in read} == {"alpha", "beta"}
    assert {len(row.turns) for row in read} == {2, 6}  # of one turn, and of three


def test_pairs_about_single_records_are_nlplog_rows(tmp_path, logs, shared):
    """Their columns are those of the public record, and its document is made as theirs are."""
    with teacher(good) as fake:
        synthesise(tmp_path / "run", fake, logs[:1], "--rows", "nlplog", "--valid_fraction", "0.2")
    rows = rows_of(tmp_path / "run")
    (public,) = json.loads((shared / "data" / "nlplog" / "nlplog_sample_1.json").read_text())
    assert all(public.keys() <= row.keys() for row in rows)
    assert report_of(tmp_path / "run")["by_task"].keys() == set(DIMENSIONS)
    assert len(rows) == len(DIMENSIONS) * report_of(tmp_path / "run")["chunks"]["kept"]
    made = list(documents(InputFile(tmp_path / "run" / "train.jsonl"), "nlplog", 1000))
    texts = [f"Human: {row['instruction']}\nAssistant: {row['output']}\n" for row in rows[: len(made)]]
    assert [row.text for row in made if not isinstance(row, BadRow)] == texts
    assert all(row["log"] in row["instruction"] for row in rows)
    done = subprocess.run(
        [sys.executable, "-m", "logtrain.prepare", "--format", "nlplog", "--input", f"{tmp_path}/run/train.jsonl",
         "--tokenizer", str(shared / "data" / "stories260k"), "--output", str(tmp_path / "data"), "--seq_len", "256"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_own_prompts_and_what_the_manifest_says(tmp_path, logs):
    (tmp_path / "own.toml").write_text(OWN)
    more = ["--prompts", str(tmp_path / "own.toml"), "--json_mode", "schema", "--sampling.temperature", "0.3"]
    more += ["--max_new_tokens", "33", "--chunks_per_system", "2", "--language", "any", "--grounded", "0"]
    with teacher(lambda asked, count: Say(f"It is {asked['messages'][1]['content'][-40:]}")) as fake:
        assert synthesise(tmp_path / "run", fake, logs, *more) == 0
    assert len(fake.asked) == 4 and {asked["max_tokens"] for asked in fake.asked} == {33}
    system, user = (fake.asked[0]["messages"][i]["content"] for i in (0, 1))
    assert (system in ("You know alpha.", "You know beta.")) and user.count("host") > 5 and "{" not in user
    assert "response_format" not in fake.asked[0] and fake.asked[0]["temperature"] == 0.3
    folder = tmp_path / "run"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["teacher"]["told"] == {"id": "wise", "max_model_len": 8192}
    assert manifest["prompts"]["sha256"] == hashlib.sha256(OWN.encode()).hexdigest()
    assert manifest["prompts"]["tasks"]["short"]["ask"] == ["What is {log} in {system}?"]
    assert len(manifest["files"]) == 7
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    for log, facts in zip(logs, manifest["logs"], strict=True):
        assert facts["sha256"] == hashlib.sha256(Path(log.partition("=")[2]).read_bytes()).hexdigest()
    (tmp_path / "own.toml").write_text(OWN + "# changed\n")
    with teacher(good) as fake, pytest.raises(ValueError, match="other prompts"):
        synthesise(folder, None, logs, *more, "--base_url", fake.url, "--teacher", "wise", "--resume", "auto")


def test_json_is_asked_for_as_the_mode_says(tmp_path, logs):
    asked = {}
    for mode in ("none", "object", "schema"):
        with teacher(good) as fake:
            synthesise(tmp_path / mode, fake, logs, "--tasks", "anomalies", "--limit", "1", "--json_mode", mode)
        asked[mode] = fake.asked[0].get("response_format")
    assert asked["none"] is None and asked["object"] == {"type": "json_object"}
    assert asked["schema"]["json_schema"]["name"] == "anomalies"
    assert asked["schema"]["json_schema"]["schema"]["required"] == ["anomalies"]


def test_settings_of_draws_are_sent(tmp_path, logs):
    given = {"temperature": 0.4, "top_k": 7, "top_p": 0.8, "repetition_penalty": 1.5, "presence_penalty": 0.5}
    given |= {"frequency_penalty": 0.25, "min_p": 0.125}
    flags = [text for name, value in given.items() for text in (f"--sampling.{name}", str(value))]
    seeds = []
    for seed in ("3", "4"):
        with teacher(good) as fake:
            synthesise(tmp_path / seed, fake, logs, "--tasks", "cause", "--limit", "1", *flags, "--sampling.seed", seed)
        assert given.items() <= fake.asked[0].items()
        seeds.append(fake.asked[0]["seed"])
    assert seeds[1] == seeds[0] + 1


def test_near_duplicates_of_earlier_rows_are_left_out_in_the_order_of_jobs(tmp_path, logs):
    same = f"This is one and the same answer for all of the logs {'and it goes on ' * 20}"
    with teacher(lambda asked, count: Say(same)) as fake:
        synthesise(tmp_path / "run", fake, logs, "--tasks", "summary", "--concurrency", "5")
    told = report_of(tmp_path / "run")
    assert (told["rows"]["all"], told["rows"]["near_duplicate"]) == (1, told["jobs"]["all"] - 1)
    assert rows_of(tmp_path / "run")[0]["job"] == 0
    assert (tmp_path / "run" / "rejected.jsonl").read_text().count("near_duplicate: of an earlier row") == told["jobs"][
        "all"
    ] - 1


def test_a_model_of_a_folder_teaches(tmp_path, logs, shared):
    """stories260k knows 512 positions: rows about longer chunks are refused, and the others answered."""
    (tmp_path / "own.toml").write_text(OWN.replace("least_chars = 3", "least_chars = 1"))
    model = str(shared / "data" / "stories260k")
    more = ["--prompts", str(tmp_path / "own.toml"), "--model", model, "--max_new_tokens", "8", "--attempts", "1"]
    more += ["--rows", "nlplog", "--limit", "6", "--concurrency", "3", "--memory", "0.05"]
    (tmp_path / "chat.jinja").write_text(chats.TRIMMING)
    template = ["--template", str(tmp_path / "chat.jinja")]
    assert synthesise(tmp_path / "run", None, logs, *more, *template) == 0
    told = report_of(tmp_path / "run")
    assert told["answers"] == told["rejected"]["cut"] == 6 and told["tokens"]["answers"] == 48
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["teacher"]["kind"] == "folder"
    with pytest.raises(ValueError, match=r"refused: a prompt of .* tokens: the model knows 512 positions"):
        synthesise(tmp_path / "long", None, logs, "--model", model, "--concurrency", "2", *template)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--base_url", "http://a/v1"],
            "give either base_url and teacher, a server and a name there, or model, a folder",
        ),
        (["--model", "m", "--base_url", "http://a/v1", "--teacher", "t"], "give either base_url and teacher"),
        (["--model", "m", "--budget_dollars", "3"], "budget_dollars: give the prices too"),
        (["--model", "m", "--most_lines", "3"], "most_lines = 3 is less than least_lines = 50"),
        (["--model", "m", "--timeout", "0"], "timeout = 0.0 must be above 0"),
        (["--model", "m", "--tries", "0"], "tries = 0 must be at least 1"),
        (["--model", "m", "--valid_fraction", "1"], "valid_fraction must be in [0, 1)"),
        (["--model", "m", "--tasks", "sumary"], "'sumary' is not in "),
        (["--model", "m", "--input", "a b=x.log"], "'a b=x.log': expected SYSTEM=FILE"),
        (["--teacher", "t", "--base_url", "http://127.0.0.1:9/v1"], "http://127.0.0.1:9/v1: no answer"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, logs, flags, message):
    with pytest.raises(ValueError) as raised:
        given = [] if "--input" in flags else ["--input", *logs]
        main([*given, *flags, "--run", str(tmp_path / "run")])
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not list(tmp_path.glob("run/*.jsonl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("role", "rule"), "expected role = ... and [tasks.NAME] tables, found rule, tasks"),
        (("teacher = ", "tutor = "), "tasks.short: tutor: unknown key"),
        (("ask = [", "ask = 3 # ["), "tasks.short: ask = 3: expected a list"),
        (("least_chars = 3", "least_chars = 9999"), "least_chars and most_chars"),
        (("least_chars = 3", 'form = "json"'), "tasks.short: schema: missing"),
        (("least_chars = 3", 'form = "yaml"'), "tasks.short: form = 'yaml'"),
        (("least_chars = 3", 'form = "turns"'), "a row of nlplog has one question"),
        (("[tasks.short]", "[tasks.short"), "not TOML"),
    ],
)
def test_a_wrong_file_of_prompts_says_what_and_where(tmp_path, change, message):
    (tmp_path / "own.toml").write_text(OWN.replace(*change))
    config = SynthesiseConfig(input=("a=b.log",), run="r", model="m", prompts=str(tmp_path / "own.toml"), rows="nlplog")
    with pytest.raises(ValueError) as raised:
        read_prompts(config)
    assert message in str(raised.value) and str(raised.value).startswith(str(tmp_path / "own.toml"))


def test_help_answers_at_once():
    process = subprocess.Popen(
        [sys.executable, "-m", "logtrain.synthesise", "--help"], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout
    said = process.stdout.read().decode()
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    assert "--budget_dollars FLOAT" in said
    assert used.ru_utime + used.ru_stime < 1.5
