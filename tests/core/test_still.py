"""What is said of a stage that takes long: its last note, every five seconds, and nothing of steps with records."""

import time
from collections.abc import Callable

from logtrain import hub, prepare, replay, report, status
from logtrain.core import checksums, still
from logtrain.core.still import Still
from logtrain.data import preparation
from logtrain.data.files import InputFile
from logtrain.generation import load
from logtrain.observe import page, run_files
from logtrain.observe.progress import Progress
from tests.support.conversations import write_chat_model
from tests.support.preparing import write_bytes_tokenizer


def said(notes: list[tuple[float, str]], until: float) -> list[tuple[float, str]]:
    """What is said until a time, if the notes change at the times that stand before them."""
    still = Still(enabled=False)
    still.since = still.said = Still.shown = 0.0
    found = []
    for tick in range(int(2 * until)):
        now = tick / 2
        doing = [note for when, note in notes if when <= now][-1]
        if text := still.look(doing, now):
            found.append((now, text))
    return found


def test_a_stage_of_many_pieces_is_told_every_five_seconds():
    notes = [(second, f"reading model.layers.{second}.weight") for second in range(12)]
    assert said(notes, 12) == [
        (5.0, "reading model.layers.5.weight: 5 s"),
        (10.0, "reading model.layers.10.weight: 10 s"),
    ]


def test_a_piece_that_stands_still_is_told_too_and_a_short_one_is_not():
    assert said([(0, "packing /data"), (3, "verifying /data/a"), (9, "its end")], 11) == [
        (8.0, "verifying /data/a: 5 s")
    ]


def test_only_the_first_step_is_told():
    steps = [
        (0, "the rows of step 41"),
        (1, "step 41"),
        (14, "the rows of step 42"),
        (14.5, "step 42"),
        (28, "step 43"),
    ]
    assert [text for _, text in said(steps, 40)] == ["step 41: 5 s", "step 41: 10 s"]
    assert [text for _, text in said([(0, "validation, step 1 of 9"), (6, "validation, step 2 of 9")], 7)] == [
        "validation, step 1 of 9: 5 s"
    ]


def test_work_whose_progress_is_shown_is_not_told_too(monkeypatch, capsys):
    monkeypatch.setattr("logtrain.observe.progress.SECONDS_BETWEEN_LINES", 0.0)
    quiet = Still(enabled=False)
    quiet.look("answering", quiet.said)
    with Progress("evaluate", 10) as progress:
        progress.update(0, {"answered": 0})
        progress.update(5, {"answered": 5})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "evaluate answered=0",
        "evaluate answered=5 eta_seconds=0",
    ]
    assert quiet.look("answering", Still.shown + 4.9) == ""
    assert quiet.look("answering", Still.shown + 5.1).startswith("answering: 5 s")
    monkeypatch.setattr(Still, "shown", 0.0)


def slowed(function: Callable) -> Callable:
    """The function as on a disk that is slow."""
    return lambda *args: (time.sleep(0.3), function(*args))[1]


def test_the_data_that_a_slow_disk_holds_are_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.jsonl").write_text('{"text": "w1 w2 w3"}\n')
    tokenizer = write_bytes_tokenizer(tmp_path)
    monkeypatch.setattr(still, "SILENT", 0.05)
    monkeypatch.setattr(preparation, "make_report", slowed(preparation.make_report))
    monkeypatch.setattr(InputFile, "sha256", slowed(InputFile.sha256))
    flags = ["--input", str(tmp_path / "text.jsonl"), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "out")]
    prepare.main([*flags, "--workers", "1", "--valid_fraction", "0"])
    said = capsys.readouterr().err
    assert "hashing the input: 0 s" in said and "packing rows for the report: 0 s" in said


def test_a_command_without_a_world_says_what_it_is_at(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("text")
    monkeypatch.setattr(still, "SILENT", 0.05)
    monkeypatch.setattr(checksums.hashlib, "file_digest", slowed(checksums.hashlib.file_digest))
    assert hub.main(["push", "name", str(tmp_path / "file"), "--store", str(tmp_path / "store")]) == 0
    assert f"hashing {tmp_path / 'file'}: 0 s" in capsys.readouterr().err


def test_reading_runs_and_drawing_their_page_is_told(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text('name = "run"\n')
    monkeypatch.setattr(still, "SILENT", 0.05)
    monkeypatch.setattr(run_files, "read_run", slowed(run_files.read_run))
    monkeypatch.setattr(page, "write_report", slowed(page.write_report))
    assert status.main([str(run)]) == 0
    assert f"reading {run}: 0 s" in capsys.readouterr().err
    assert report.main([str(run), "--no-pictures"]) == 0
    said = capsys.readouterr().err
    assert f"reading {run}: 0 s" in said and f"drawing {run / 'report.html'}: 0 s" in said


def test_loading_a_model_is_told(tmp_path, monkeypatch, capsys):
    model = write_chat_model(tmp_path / "model")
    monkeypatch.setattr(still, "SILENT", 0.05)
    monkeypatch.setattr(load, "read_model", slowed(load.read_model))
    flags = ["--model", str(model), "--tokens", "60", "--max_tokens", "20", "--seq_len", "48", "--min_tokens", "2"]
    assert replay.main([*flags, "--output", str(tmp_path / "replay"), "--kind", "documents"]) == 0
    assert f"loading the weights of {model}: 0 s" in capsys.readouterr().err
