"""What a run tells: one series of records over kills, and what a person sees."""

import contextlib
import os
import pty
import re
import sys
import threading
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from logtrain.core.sealed_lines import object_of
from logtrain.core.watchdog import Watchdog
from logtrain.observe.health import Event
from logtrain.observe.metrics import Metrics
from logtrain.observe.screen import Stage


def record(step: int, **changed) -> dict:
    return {
        "step": step,
        "epoch": step / 106,
        "loss": 1 / (step + 1),
        "grad_norm": 1.25,
        "lr": 9.5e-6,
        "tokens": step * 1048576,
        "targets": step * 1040000,
        "tokens_per_second": 58412.3,
        "tokens_per_second_per_gpu": 7301.5,
        "mfu": 0.4123,
        "peak_memory_gib": 54.02,
        "step_seconds": 17.95,
        "data_seconds": 0.02,
        "eta_seconds": (106 - step) * 17.95,
        **changed,
    }


def valid(step: int) -> dict:
    return {"step": step, "epoch": step / 106, "set": "valid", "valid_loss": 0.5, "valid_targets": 12345}


def read(folder: Path) -> list[dict]:
    """The records, each without the hash of its line, and what it says of its file."""
    found = [object_of(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    return [record for record in found if record is not None and record.pop("file") == "metrics"]


# -- the files ----------------------------------------------------------------------------------------


def test_every_record_is_in_both_files_at_once(tmp_path, capsys):
    records = [valid(0), record(10), record(20, mfu=None, loss=float("nan"))]
    with Metrics(tmp_path, enabled=True, total_steps=106) as metrics:
        metrics.info("two\nlines é")
        metrics.valid(records[0])
        metrics.train(records[1])
        assert read(tmp_path) == records[:2]  # already on disk: a kill loses nothing
        metrics.train(records[2])
    assert read(tmp_path) == [*records[:2], {**records[2], "loss": None}]  # JSON has no NaN

    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\r" not in printed
    lines = printed.splitlines()
    assert lines[:3] == ["two", "lines é", "step=0/106 epoch=0 set=valid valid_loss=0.5 valid_targets=12345"]
    assert lines[4].startswith("step=20/106 epoch=0.188679 loss=nan grad_norm=1.25 lr=9.5e-06 tokens=20971520 ")
    assert "mfu" not in lines[4] and "per_gpu" not in lines[4]
    assert " left=0:25:44 eta_seconds=1543.7" in lines[4]
    told = dict(part.split("=") for part in lines[3].split(" "))
    assert (told.pop("step"), told.pop("left")) == ("10/106", "0:28:43")
    parsed = {key: float(value) for key, value in told.items()}
    assert parsed == pytest.approx({key: value for key, value in records[1].items() if key != "step"}, rel=1e-5)

    logged = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 1)[1] for line in logged[:2]] == lines[:2]
    assert " step=20 epoch=0.188679 loss=nan " in logged[4] and " mfu=null " in logged[4]  # for programs
    for line in logged:
        assert abs((datetime.now().astimezone() - datetime.fromisoformat(line.split(" ")[0])).total_seconds()) < 60


def test_a_text_with_spaces_stays_one_value(tmp_path, capsys):
    with Metrics(tmp_path, enabled=True, total_steps=1) as metrics:
        metrics.valid({**valid(1), "set": 'held "out"=1'})
    assert r'set="held \"out\"=1" valid_loss=' in capsys.readouterr().out


def test_other_ranks_are_silent(tmp_path, capsys):
    with Metrics(tmp_path, enabled=False, total_steps=10) as metrics:
        metrics.train(record(1))
        metrics.valid(valid(1))
        metrics.info("x")
        metrics.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_what_stopped_a_run_is_logged(tmp_path):
    with pytest.raises(ValueError), Metrics(tmp_path, enabled=True, total_steps=10):
        raise ValueError("training has diverged")
    assert "stopped by ValueError: training has diverged" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("torn", "resume_step", "kept"),
    [
        (b"", 20, [0, 10, 20, 20]),
        (b"", 25, [0, 10, 20, 20]),
        (b"", 30, [0, 10, 20, 20, 30]),
        (b"", 0, []),  # the run starts anew, its validation before the first step too
        (b'{"step":40,"epo', 30, [0, 10, 20, 20, 30]),
        (b'{"step":40,"epo', 20, [0, 10, 20, 20]),
        (b'{"step":20}', 30, [0, 10, 20, 20, 30]),  # whole, but for the end of its line
        (b"\0\0\0\0\n\0\0", 30, [0, 10, 20, 20, 30]),  # what a file system leaves after a power cut
        (b"30\n[30]\n{}", 30, [0, 10, 20, 20, 30]),  # JSON, but no records
    ],
)
def test_a_resumed_run_continues_one_series(tmp_path, capsys, torn, resume_step, kept):
    with Metrics(tmp_path, enabled=True, total_steps=106) as metrics:
        for line in (valid(0), record(10), record(20), valid(20), record(30)):
            (metrics.valid if "set" in line else metrics.train)(line)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(torn)
    capsys.readouterr()
    with Metrics(tmp_path, enabled=True, total_steps=106, resume_step=resume_step) as metrics:
        metrics.train(record(resume_step + 10))
    assert [line["step"] for line in read(tmp_path)] == [*kept, resume_step + 10]
    removed = 5 + (torn.count(b"\n") + 1 if torn else 0) - len(kept)
    said = f"metrics.jsonl: removed {removed} records made after the checkpoint; their steps run again\n"
    assert capsys.readouterr().out.startswith(said if removed else "step=")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl", "log.txt", "metrics.jsonl"]


def test_what_is_lost_of_the_records_is_told(tmp_path, capsys):
    with Metrics(tmp_path, enabled=True, total_steps=106) as metrics:
        for step in (10, 20, 30, 40):
            metrics.train(record(step))
    first, second, *rest = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(first + second.replace(b'"step"', b'"stop"') + b"".join(rest))
    capsys.readouterr()
    Metrics(tmp_path, enabled=True, total_steps=106, resume_step=40).close()
    assert capsys.readouterr().out == "metrics.jsonl: removed 1 lines that are damaged; their records are lost\n"
    (tmp_path / "metrics.jsonl").write_bytes(first)
    Metrics(tmp_path, enabled=True, total_steps=106, resume_step=40).close()
    lost = "metrics.jsonl: has no record of step 40, at which the run goes on: some are lost\n"
    assert capsys.readouterr().out == lost
    (tmp_path / "metrics.jsonl").unlink()
    Metrics(tmp_path, enabled=True, total_steps=106, resume_step=40).close()
    assert capsys.readouterr().out == lost


def test_a_record_whose_figure_has_changed_is_not_gone_on_with(tmp_path, capsys):
    with Metrics(tmp_path, enabled=True, total_steps=106) as metrics:
        for step in (10, 20, 30):
            metrics.train(record(step))
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"tokens":20971520', b'"tokens":20971521'))
    capsys.readouterr()
    Metrics(tmp_path, enabled=True, total_steps=106, resume_step=30).close()
    assert capsys.readouterr().out == "metrics.jsonl: removed 1 lines that are damaged; their records are lost\n"
    assert [line["step"] for line in read(tmp_path)] == [10, 30]


def test_an_event_that_a_kill_has_torn_takes_no_other_with_it(tmp_path):
    for text in ("first", "second"):
        with Metrics(tmp_path, enabled=True, total_steps=106) as metrics:
            metrics.event(Event(3, "spike", text))
        with open(tmp_path / "events.jsonl", "ab") as file:
            file.write(b'{"time":3,"te')
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert [event and event["text"] for event in map(object_of, lines)] == ["first", "second", None]


def test_a_kill_while_records_are_removed_leaves_the_old_ones(tmp_path, monkeypatch):
    with Metrics(tmp_path, enabled=True, total_steps=106) as metrics:
        metrics.train(record(10))
        metrics.train(record(20))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            Metrics(tmp_path, enabled=True, total_steps=106, resume_step=10)
    assert read(tmp_path) == [record(10), record(20)]
    Metrics(tmp_path, enabled=True, total_steps=106, resume_step=10).close()
    assert read(tmp_path) == [record(10)]


# -- the terminal -------------------------------------------------------------------------------------


def run_on_a_terminal(folder: Path, width: int, monkeypatch) -> str:
    """What a run writes to a terminal of `width` columns."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.delenv("NO_COLOR", raising=False)
    written = []

    def read_all():
        with contextlib.suppress(OSError):  # Linux: the other end is closed
            while part := os.read(ours, 65536):
                written.append(part)

    reader = threading.Thread(target=read_all)
    reader.start()
    with open(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        with Metrics(folder, enabled=True, total_steps=106) as metrics:
            metrics.info("model of [8B] parameters")
            metrics.valid(valid(0))
            metrics.train(record(10, mfu=None))
            print("from elsewhere")
            metrics.train(record(106))
    reader.join()
    os.close(ours)
    return b"".join(written).decode()


@pytest.mark.parametrize(("width", "last"), [(80, "MFU"), (120, "tokens")])
def test_a_terminal_shows_a_table_and_a_bar(tmp_path, monkeypatch, width, last):
    monkeypatch.setattr(Watchdog, "latest", None)
    written = run_on_a_terminal(tmp_path, width, monkeypatch)
    assert "\x1b[?25l" in written and "\x1b[?25h" in written  # the cursor is hidden and comes back
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).split("\r")[-1] for line in written.split("\r\n")]
    assert max(map(len, lines)) <= width
    table = [line for line in lines if line.strip() and not line.startswith("training")]
    assert table[0] == "model of [8B] parameters"
    headings = re.split(r" {2,}", table[1].strip())
    assert headings[:3] == ["step", "epoch", "loss"] and headings[-1] == last
    assert table[2].split() == ["0", "0.000", "0.5000", "on", "valid", "(12,345", "targets)"]
    assert table[3].split()[:6] == ["10", "0.094", "0.0909", "1.25", "9.50e-06", "7,302"]
    assert table[3].split()[8] == "-"
    assert table[4] == "from elsewhere"  # above the bar, not through it
    assert table[5].split()[8] == "41.2%"
    assert len({len(line) for line in (table[1], table[3], table[5])}) == 1  # columns are aligned
    bar = [line for line in lines if line.startswith("training")][-1]
    assert re.fullmatch(r"training ━+ 106/106 100% 0:00:\d\d 0:00:00 left *", bar)

    assert [line["step"] for line in read(tmp_path)] == [0, 10, 106]
    log = (tmp_path / "log.txt").read_text()
    assert "\x1b" not in log and " step=10 epoch=0.0943396 loss=0.0909091 " in log


def test_the_bar_names_the_stage_that_the_watchdog_notes(monkeypatch):
    now = SimpleNamespace(doing="step 7")
    monkeypatch.setattr(Watchdog, "latest", now)
    stage = Stage()
    assert stage.render(None).plain == "training"
    for doing in ("validation, step 3 of 18", "export, 3.1 GB at 1.2 GB/s, blocks.3.out"):
        now.doing = doing
        assert stage.render(None).plain == doing
    now.doing = "checkpoint, \x1b[31m" + "x" * 100
    assert "\x1b" not in stage.render(None).plain and len(stage.render(None).plain) == 48


def test_records_that_have_changed_since_are_told(tmp_path):
    with Metrics(tmp_path, enabled=True, total_steps=106) as metrics:
        metrics.train(record(10))
        written = metrics.crc32
        metrics.train(record(20))
    with Metrics(tmp_path, enabled=True, total_steps=106, resume_step=10, crc32=written) as metrics:
        assert metrics.crc32 == written
        metrics.train(record(20))
    assert "not as they were written" not in (tmp_path / "log.txt").read_text()
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"loss":0', b'"loss":1').replace(b'"loss":1', b'"loss":2'))
    Metrics(tmp_path, enabled=True, total_steps=106, resume_step=10, crc32=written).close()
    assert (
        "metrics.jsonl: some records up to step 10 are not as they were written" in (tmp_path / "log.txt").read_text()
    )
