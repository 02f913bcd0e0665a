"""Logs cut into chunks: which lines each has, which are left out, and that no split tells another's answers."""

import json

import pytest

from logtrain.synthesis import run
from logtrain.synthesis.chunks import read_chunks
from logtrain.synthesis.config import SynthesiseConfig
from logtrain.text.masked import mask
from tests.support.jaccard import share_with_near_twins
from tests.support.synthesising import good, report_of, rows_of, synthesise, write_log
from tests.support.teacher import teacher

SYSTEMS = 12


def chunks_of(logs, **settings):
    server = {"base_url": "http://127.0.0.1:1/v1", "teacher": "wise"}
    sizes = {"least_lines": 5, "most_lines": 9}
    return read_chunks(SynthesiseConfig(input=tuple(logs), run="/none", **server, **{**sizes, **settings}))


def test_chunks_are_the_lines_of_the_log_in_a_row(tmp_path):
    path = write_log(tmp_path / "app.log", 100)
    found = chunks_of([str(path)])
    lines = path.read_text().splitlines()
    assert {chunk.system for chunk in found.chunks} == {"app"}
    assert all(5 <= chunk.num_lines <= 9 for chunk in found.chunks)
    assert len({chunk.num_lines for chunk in found.chunks}) > 2
    at = 0
    for chunk in found.chunks:
        assert chunk.first_line == at + 1
        assert chunk.text.splitlines() == lines[at : at + chunk.num_lines]
        at += chunk.num_lines
    assert len(lines) - at < 5 and found.left_out["short"] == (at < len(lines))
    assert chunks_of([str(path)]).sha256 == found.sha256 != chunks_of([str(path)], seed=2).sha256


def test_a_record_stays_whole_and_too_long_a_one_is_left_out(tmp_path):
    lines = write_log(tmp_path / "app.log", 40).read_text().splitlines()
    lines[3] += "\r\n\tat a.b(C.java:1)\n\tat a.c(C.java:2)"
    lines[10] += "x" * 3000
    lines[20] += " \x1b[2J\u202e"
    (tmp_path / "app.log").write_text("\n".join(lines), newline="")
    found = chunks_of([str(tmp_path / "app.log")], most_chars=2000)
    text = "\n".join(chunk.text for chunk in found.chunks)
    assert f"{lines[3].partition(chr(13))[0]}\n\tat a.b(C.java:1)\n\tat a.c(C.java:2)" in text
    assert "xxxx" not in text and found.left_out["long"] == 1
    assert r"\x1b[2J\u202e" in text
    assert all(len(chunk.text) <= 2000 for chunk in found.chunks)


def test_near_twins_are_left_out_whatever_their_values(tmp_path):
    path = write_log(tmp_path / "app.log", 21)
    again = path.read_text().replace("Dec 10", "Jan 31").replace("id=1", "id=77")
    (tmp_path / "other.log").write_text(again)
    settings = {"least_lines": 7, "most_lines": 7}
    found = chunks_of([str(path), str(tmp_path / "other.log")], **settings)
    assert {chunk.system for chunk in found.chunks} == {"app"}
    assert (len(found.chunks), found.left_out["near_twin"]) == (3, 3)


def test_systems_and_times_are_held_out(tmp_path):
    logs = [f"s{n}={write_log(tmp_path / f's{n}.log', 100, n)}" for n in range(4)]
    found = chunks_of(logs, valid_fraction=0.3, valid_systems=2)
    held = {chunk.system for chunk in found.chunks if chunk.split == "valid_systems"}
    assert len(held) == 2
    assert held != {chunk.system for chunk in chunks_of(logs, valid_systems=2, seed=4).chunks if chunk.split[5:]}
    for system in {f"s{n}" for n in range(4)} - held:
        mine = [chunk for chunk in found.chunks if chunk.system == system]
        last = max(chunk.first_line + chunk.num_lines - 1 for chunk in mine if chunk.split == "train")
        held_out = [chunk for chunk in mine if chunk.split == "valid"]
        assert all(chunk.first_line > last for chunk in held_out)
        assert len(held_out) == round(0.3 * len(mine))
    assert {chunk.split for chunk in chunks_of(logs[:1], valid_fraction=0.0).chunks} == {"train"}


def test_chunks_of_a_system_are_spread_over_its_time(tmp_path):
    log = str(write_log(tmp_path / "app.log", 400))
    found = chunks_of([log], chunks_per_system=5)
    firsts = [chunk.first_line for chunk in found.chunks]
    assert len(firsts) == 5 and firsts == sorted(firsts)
    assert all(80 * part - 20 < first <= 80 * (part + 1) + 20 for part, first in enumerate(firsts))
    assert found.left_out["surplus"] == len(chunks_of([log]).chunks) - 5


def test_single_records_are_one_of_each_template(tmp_path):
    lines = [f"Dec 10 06:00:{n:02} host sshd[{n}]: Failed password for root from 10.0.0.{n}\n" for n in range(30)]
    lines[7] = "Dec 10 06:00:07 host kernel: Out of memory: Kill process 7 (java) score 9\n"
    (tmp_path / "app.log").write_text("".join(lines))
    found = chunks_of([str(tmp_path / "app.log")], rows="nlplog")
    assert [chunk.text + "\n" for chunk in found.chunks] == [lines[0], lines[7]]
    assert found.left_out["template"] == 28


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("app.json", "[]", "not a raw log; give a .log or .txt file"),
        ("app.log", "one line\n", "no chunk of 5 to 9 lines in it \\(1 short\\)"),
        ("app.log", "", "no chunk of 5 to 9 lines"),
    ],
)
def test_what_is_no_log_is_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        chunks_of([str(tmp_path / name)])


@pytest.mark.slow
def test_a_thousand_chunks_of_twelve_systems_leak_nothing(tmp_path, shared, monkeypatch):
    """Of 24,000 lines, so chunks are short: of 50 to 150 lines there are 231, and 138 without near-twins."""
    logs = sorted((shared / "data" / "loghub").glob("*/*_2k.log"))
    named = [f"{path.parent.name}={path}" for path in logs]
    assert len(named) == SYSTEMS
    monkeypatch.setattr(run, "FIRST_PAUSE", 0.01)
    more = ["--least_lines", "4", "--most_lines", "10", "--tasks", "anomalies", "--valid_systems", "2"]
    with teacher(good) as fake:
        assert synthesise(tmp_path / "run", fake, named, *more, "--concurrency", "8") == 0
    told = report_of(tmp_path / "run")
    assert told["chunks"]["kept"] == told["jobs"]["all"] >= 1000
    assert told["rows"]["all"] == told["jobs"]["all"] and set(told["by_system"]) == {path.parent.name for path in logs}
    rows = {name: [json.loads(line) for line in (tmp_path / "run" / f"{name}.jsonl").read_text().splitlines()]
            for name in ("train", "valid", "valid_systems")}  # fmt: skip
    assert len({row["domain"] for row in rows["valid_systems"]}) == 2
    assert not {row["domain"] for row in rows["valid_systems"]} & {
        row["domain"] for row in rows["train"] + rows["valid"]
    }
    for system in {row["domain"] for row in rows["train"]}:
        last = max(row["line"] for row in rows["train"] if row["domain"] == system)
        assert all(row["line"] > last for row in rows["valid"] if row["domain"] == system)
    texts = {name: [chunk_in(row) for row in some] for name, some in rows.items()}
    assert share_with_near_twins(texts["valid"], texts["train"]) == 0
    assert share_with_near_twins(texts["valid_systems"], texts["train"] + texts["valid"]) == 0
    assert len({row["job"] for row in rows_of(tmp_path / "run")}) == told["rows"]["all"]


def chunk_in(row) -> str:
    """A row's log with its values masked, as near-twins are told by."""
    text = row["messages"][0]["content"].partition("\n")[2]
    return mask([text]).texts[0].decode("utf-8", "replace")
