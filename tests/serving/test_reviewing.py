"""A review without a browser: its paths, its file of decisions, and `logtrain review` as a program."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import urllib3

from logtrain.review import main
from logtrain.serving.decisions import Decision, Decisions
from logtrain.serving.reviewed_file import ReviewedFile
from tests.support import ROOT
from tests.support.reviewing import chat, review_server, saved, write_rows


@pytest.fixture
def file(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", [chat(n) for n in range(4)])


def decide(file, reviewer, verdicts, edits=None):
    rows = ReviewedFile(file)
    decisions = Decisions(file, rows.hashes)
    for row, verdict in verdicts.items():
        texts = {"messages/1/content": edits or "better"} if verdict == "edit" else {}
        decisions.add(Decision(row, rows.hashes[row], reviewer, verdict, texts))


def post(url, row, facts, **headers):
    headers = {"Content-Type": "application/json"} | headers
    return urllib3.request("POST", f"{url}/review/rows/{row}", body=json.dumps(facts).encode(), headers=headers)


def test_rows_of_each_form_have_their_parts(tmp_path):
    rows = [
        {"system": "be brief", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"instruction": "i", "log": "l", "output": "o", "domain": "d"},
        {"instruction": "i", "input": "", "output": "o"},
        {"text": "t"},
    ]
    found = ReviewedFile(write_rows(tmp_path / "rows.jsonl", rows))
    parts = [[(part.name, part.path, part.text, part.is_answer) for part in found.parts(n)] for n in range(4)]
    assert parts == [
        [("system", "system", "be brief", False), ("human", "conversations/0/value", "a", False),
         ("gpt", "conversations/1/value", "b", True)],
        [("instruction", "instruction", "i", False), ("log", "log", "l", False), ("output", "output", "o", True)],
        [("instruction", "instruction", "i", False), ("output", "output", "o", True)],
        [("text", "text", "t", False)],
    ]  # fmt: skip
    edited = found.edited(0, {"conversations/1/value": "c"})
    assert edited["conversations"][1]["value"] == "c" and rows[0]["conversations"][1]["value"] == "b"
    assert edited["conversations"][0] == rows[0]["conversations"][0]


def test_a_decision_is_on_the_disk_before_the_reply(file):
    with review_server(file) as url:
        assert post(url, 2, {"verdict": "accept", "edits": {}, "note": "é"}).json() == {"row": 2, "verdict": "accept"}
        assert [(one["row"], one["verdict"], one["note"]) for one in saved(file)] == [(2, "accept", "é")]
        listed = urllib3.request("GET", f"{url}/review/rows").json()
        assert listed == {"file": "rows.jsonl", "reviewer": "ann", "verdicts": ["open", "open", "accept", "open"]}


@pytest.mark.parametrize(
    ("row", "facts", "message"),
    [
        (9, {"verdict": "accept"}, "row 9: there are 4"),
        (0, {"verdict": "maybe"}, "verdict = 'maybe'"),
        (0, {"verdict": "edit"}, "edits: a row is edited by texts that differ"),
        (0, {"verdict": "accept", "edits": {"messages/1/content": "other"}}, "edits: a row is edited by"),
        (0, {"verdict": "edit", "edits": {"messages/9/content": "x"}}, "edits: row 0 has no 'messages/9/content'"),
        (0, {"verdict": "edit", "edits": {"domain": "x"}}, "edits: row 0 has no 'domain'"),
        (0, {"verdict": "accept", "note": "x" * 5000}, "note: more than 4,000"),
        (0, {"verdict": "accept", "more": 1}, "expected verdict, edits, note"),
        (0, {"verdict": "reject", "note": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_a_wrong_request_saves_nothing(file, row, facts, message):
    facts = {"edits": {}, "note": ""} | facts
    with review_server(file) as url:
        reply = post(url, row, facts)
        assert reply.status == 400 and message in reply.json()["error"]["message"]
    assert not file.with_name("rows.jsonl.reviews.jsonl").exists()


def test_no_other_site_and_no_other_name_gets_in(file):
    with review_server(file) as url:
        accept = {"verdict": "accept", "edits": {}, "note": ""}
        assert post(url, 0, accept, Origin="http://evil.example").status == 400
        assert post(url, 0, accept, **{"Content-Type": "text/plain"}).status == 400
        assert urllib3.request("GET", f"{url}/review/rows", headers={"Host": "evil.example"}).status == 400
        page = urllib3.request("GET", f"{url}/")
        assert page.status == 200 and page.url == "/review"
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "http:" not in policy
        assert not re.search(rb'(src|href)="?(https?:)?//', page.data)
        assert post(url, 0, accept, Origin=url).status == 200
    assert len(saved(file)) == 1


def test_a_torn_line_is_ignored_and_what_was_changed_is_refused(file):
    decide(file, "ann", {0: "accept", 1: "reject"})
    path = file.with_name("rows.jsonl.reviews.jsonl")
    with open(path, "ab") as stream:
        stream.write(b'{"row": 2, "sha2')
    decide(file, "ann", {3: "accept"})
    hashes = ReviewedFile(file).hashes
    assert {row: one.verdict for row, one in Decisions(file, hashes).by["ann"].items()} == {
        0: "accept",
        1: "reject",
        3: "accept",
    }
    path.write_bytes(path.read_bytes().replace(b'"reject"', b'"accept"'))
    with pytest.raises(ValueError, match="line 2: has changed since it was written"):
        Decisions(file, hashes)


def test_a_lost_end_is_told_and_lost_decisions_are_no_empty_export(file, tmp_path, capsys):
    decide(file, "ann", {0: "accept", 1: "accept"})
    path, kept = file.with_name("rows.jsonl.reviews.jsonl"), tmp_path / "kept.jsonl"
    os.truncate(path, path.stat().st_size - 9)
    assert main([str(file), "--export", str(kept)]) == 0
    assert "reviews.jsonl line 2: torn, by a kill or since; it does not count" in capsys.readouterr().out
    assert len(kept.read_text().splitlines()) == 1
    for lose in (lambda: path.write_bytes(b""), path.unlink):
        lose()
        with pytest.raises(ValueError, match=r"reviews.jsonl: no decision in it; review .*rows.jsonl first"):
            main([str(file), "--export", str(kept)])


def test_a_number_of_more_than_64_bits_is_kept(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"text": "a", "id": 2**70}]))
    decide(file, "ann", {0: "accept"})
    assert main([str(file), "--export", str(tmp_path / "kept.jsonl")]) == 0
    assert json.loads((tmp_path / "kept.jsonl").read_text()) == {"text": "a", "id": 2**70}


def test_summary_and_export(file, tmp_path, capsys):
    decide(file, "ann", {0: "accept", 1: "reject", 2: "edit", 3: "accept"})
    decide(file, "bob", {0: "accept", 1: "reject", 2: "accept", 3: "reject"})
    decide(file, "ann", {3: "open"})
    decide(file, "ann", {3: "edit"}, "best")
    assert main([str(file), "--summary", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reviewers"] == {
        "ann": {"accept": 1, "edit": 2, "reject": 1},
        "bob": {"accept": 2, "edit": 0, "reject": 2},
    }
    (pair,) = told["pairs"]
    assert (pair["differ"], pair["verdict"]["num"], pair["verdict"]["share"]) == ([2, 3], 4, 0.5)
    assert pair["verdict"]["kappa"] == pytest.approx((0.5 - 0.25) / 0.75)  # c = (1 * 2 + 1 * 2) / 16
    assert pair["kept"]["kappa"] == pytest.approx(0.5)  # p = 3 / 4, c = (3 * 2 + 1 * 2) / 16
    assert main(["--file", str(file), "--summary", "text"]) == 0
    assert "ann and bob, kept: kappa 0.50 (" in capsys.readouterr().out
    assert main([str(file), "--export", str(tmp_path / "kept.jsonl")]) == 0
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [row["job"] for row in kept] == [0, 2]  # bob rejects 1 and 3
    assert kept[0] == chat(0) and kept[1]["messages"][1]["content"] == "better"


def test_decisions_about_a_row_that_has_changed_do_not_count(file, capsys):
    decide(file, "ann", {0: "accept", 1: "accept"})
    write_rows(file, [chat(0, "another answer"), *[chat(n) for n in range(1, 4)]])
    main([str(file), "--summary", "text"])
    said = capsys.readouterr().out
    assert "ann: 1 accept" in said
    assert "1 decisions are about rows that have changed since, and do not count" in said


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ('{"a": 1}\n', [], "row 0: none of messages, conversations"),
        ("[1]\n", [], "row 0: "),
        ("", [], ""),
        (None, [], "no such file"),
        ("x", ["--reviewer", "a b"], "reviewer = 'a b': expected a name"),
        ("x", ["--port", "70000"], "port = 70000 must be from 0"),
        ("x", ["--export", "a.txt"], "expected a name that ends in .jsonl"),
        ("x", ["--export", "a.jsonl", "--summary", "json"], "give either summary or export"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, content, flags, message):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError) as raised:
        main([str(path), *flags])
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_it_serves_until_it_is_told_to_end(file):
    command = [sys.executable, "-m", "logtrain.review", str(file), "--reviewer", "bob", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--base_url", "http://127.0.0.1:9/v1"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        line = process.stdout.readline()
        found = re.fullmatch(rf"bob reviews {file} at (http://127.0.0.1:\d+)/review\n", line)
        assert found
        page = urllib3.request("GET", f"{found[1]}/review").data
        assert b"<title>logtrain review</title>" in page and b'aria-label="Pages"' in page
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def test_help_answers_at_once():
    process = subprocess.Popen([sys.executable, "-m", "logtrain.review", "--help"], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout
    said = process.stdout.read().decode()
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    assert "--reviewer STR" in said
    assert used.ru_utime + used.ru_stime < 1.5
