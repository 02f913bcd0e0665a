"""The report and the status of runs, from their files alone: whole, torn, hostile and many."""

import base64
import hashlib
import json
import re
import time
import zlib
from pathlib import Path

import pytest

from logtrain import report, status
from logtrain.core.sealed_lines import sealed_line
from logtrain.core.untrusted import sealed
from logtrain.observe import live_report
from logtrain.observe.charts import Chart, draw, svg_bytes, thinned
from logtrain.observe.live_report import LiveReport
from logtrain.observe.run_files import read_run
from logtrain.observe.state import state_of

EXPORT = {"live_loss": 1.5, "exported_loss": 1.51, "difference": 0.01, "dtype": "bfloat16"}
WIKI = {"name": "wiki", "role": "general", "before": 0.8, "after": 0.81, "low": -0.01, "high": 0.03, "rise": 0.0125}
FORGETTING = {"budget": 0.02, "step": 8, "is_within": True, "sets": [WIKI | {"rows": 9, "targets": 90}], "shares": []}
PAIR = {"models": ["base", "sft"], "preferred": {"mean": 0.7, "low": 0.6, "high": 0.8, "n": 9}}
JUDGE = {"judge": "wise", "pairs": [PAIR]}
SCRIPT = "<script>alert(1)</script>"


def write_run(folder: Path, *, steps: int = 30, lr: float = 1e-3, ended: str = "finished", age: float = 30.0) -> Path:
    """The files of a run that was heard of last `age` seconds ago."""
    folder.mkdir(parents=True)
    config = f'name = "{folder.name}"\nmodel = "/m/Llama"\ndata = "/none"\n[optim]\nlr = {lr}\n'
    (folder / "config.toml").write_text(config)
    last = time.time() - age
    records = [{"step": 0, "set": "valid", "valid_loss": 3.0, "time": last - steps}]
    for step in range(1, steps + 1):
        figures = {
            "loss": 3 / step,
            "grad_norm": 1.0,
            "lr": lr,
            "tokens": step * 100,
            "tokens_per_second": 1000.0 + step,
        }
        figures |= {
            "step_seconds": 1.0,
            "peak_memory_gib": 2.0,
            "eta_seconds": steps - step,
            "time": last - steps + step,
        }
        records.append({"step": step, **figures})
    records.append({"step": steps, "set": "valid", "valid_loss": 1.25, "time": last})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    event = {"time": last, "step": 7, "kind": "spike", "text": f"loss 9 at step 7 {SCRIPT}"}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    seconds = {"start": 10.0, "load": 5.0, "step": 70.0, "data wait": 1.0, "validation": 4.0, "checkpoint": 2.0}
    attempt = {"began": last - 100, "last": last, "devices": 8, "resumed_at": 0, "tokens": steps * 100, "marks": {}}
    attempt |= {
        "seconds": {**seconds, "export": 5.0, "lost": 3.0},
        "host": "node1",
        "device": "NVIDIA H100",
        "price": 2.31,
    }
    attempt |= {"total_steps": steps, "ended": ended}
    (folder / "goodput.json").write_text(json.dumps({"attempts": [attempt]}))
    sample = {"time": last, "node": "node1", "cpu": 50.0, "ram_bytes": 2**33, "gpus": [{"power_w": 650.0}] * 2}
    (folder / "system.jsonl").write_text(2 * (json.dumps(sample) + "\n"))
    return folder


def page_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_of_a_run_holds_all_of_it_and_no_script(tmp_path, capsys):
    run = write_run(tmp_path / "runs" / "a")
    (run / "export.json").write_bytes(sealed(EXPORT))
    (run / "forgetting.json").write_bytes(sealed(FORGETTING))
    (run / "plan.json").write_text('{"tokens_per_second_per_gpu": 900, "step_seconds": 2.0}')
    scores = {
        "models": {"sft": {"path": str(run / "export"), "metrics": {"rougeL": {"mean": 0.5, "low": 0.4, "high": 0.6}}}}
    }
    (tmp_path / "runs" / "eval").mkdir()
    (tmp_path / "runs" / "eval" / "scores.json").write_text(json.dumps({**scores, "data": {"questions": 61}}))
    (tmp_path / "runs" / "eval" / "judge.json").write_bytes(sealed(JUDGE))
    assert report.main([str(run), "--pictures"]) == 0
    page = page_of(run)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)  # nothing from outside
    for text in (
        "3.0000 → 1.2500",
        "1.510000",
        "+1.0e-02",
        "0.5000 (0.400 to 0.600)",
        "wise prefers sft to base: 0.7000 (0.600 to 0.800)",
        "wiki (general)",
        "-0.0100 to +0.0300",
        "+1.25%",
        "within a budget of 2.00%",
        "step 1:10 min (70.0%)",
        "0.500",
    ):
        assert text in page, text
    pictures = {path.stem for path in (run / "report").glob("*.png")}
    assert {"loss", "lr", "grad_norm", "tokens_per_second", "power", "cpu"} <= pictures
    svgs = [base64.b64decode(text).decode() for text in re.findall(r"svg\+xml;base64,([^\"]+)", page)]
    assert len(svgs) == len(pictures) and all("<script" not in svg for svg in svgs)
    assert "report.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "facts", "old", "new", "shown"),
    [
        ("export.json", lambda: EXPORT, b"1.51", b"1.61", "1.510000"),
        ("forgetting.json", lambda: FORGETTING, b"0.0125", b"0.1125", "+1.25%"),
        ("forgetting.json", lambda: FORGETTING, b'"sha256"', b'"sha255"', "+1.25%"),
        ("goodput.json", None, b"70.0", b"71.0", "step 1:10 min (70.0%)"),
    ],
)
def test_a_result_that_has_changed_is_named_and_not_shown(tmp_path, capsys, name, facts, old, new, shown):
    run = write_run(tmp_path / "a")
    content = sealed(facts() if facts else json.loads((run / name).read_text()))
    assert old in content
    for written in (content, content.replace(old, new)):
        (run / name).write_bytes(written)
        assert report.main([str(run), "--no_pictures"]) == 0
        is_whole = written == content
        assert (shown in page_of(run)) == is_whole
        for told in (page_of(run), capsys.readouterr().out):
            assert (f"{run / name}: its content has changed since it was written" in told) == (not is_whole)


def test_no_record_that_has_changed_is_told(tmp_path, capsys):
    run = write_run(tmp_path / "a")
    lines = [sealed_line({"step": step, "loss": 3.5, "time": 1.0}) for step in (1, 2, 3)]
    for damaged in (
        lines[1].replace(b"3.5", b"3.6"),
        lines[1].replace(b'"sha256"', b'"sha255"'),
        lines[1][:-9] + b"\n",
    ):
        (run / "metrics.jsonl").write_bytes(lines[0] + damaged + lines[2].removesuffix(b"\n"))
        found = read_run(run)
        assert found.steps == [{"step": step, "loss": 3.5, "time": 1.0} for step in (1, 3)]
        assert found.problems == [
            f"{run}/metrics.jsonl: 1 lines are not as they were written, the first is line 2; left out"
        ]
    (run / "metrics.jsonl").write_bytes(lines[0] + lines[1][:-9])
    assert len(read_run(run).problems) == 1, "nobody writes it any more"
    running = write_run(tmp_path / "running", ended="")
    (running / "metrics.jsonl").write_bytes(lines[0] + lines[1][:-9])
    assert (len(read_run(running).steps), read_run(running).problems) == (1, []), "it may be being written now"


@pytest.mark.parametrize(("name", "other"), [("export.json", "FORGETTING"), ("forgetting.json", "EXPORT")])
def test_a_whole_file_in_the_place_of_another_is_named(tmp_path, name, other):
    run = write_run(tmp_path / "a")
    (run / name).write_bytes(sealed(globals()[other]))
    (problem,) = read_run(run).problems
    assert problem.startswith(f"{run / name}: has no ") and problem.endswith("another file lies in its place")


def test_records_that_are_lost_from_the_end_of_a_finished_run_are_told(tmp_path, capsys):
    run, lost = write_run(tmp_path / "a"), "records up to step 30 are lost, or not as its checkpoint knows"
    content = (run / "metrics.jsonl").read_bytes()
    saved = run / "checkpoints" / "step-000030" / "checkpoint.json"
    saved.parent.mkdir(parents=True)
    saved.write_bytes(sealed({"state": {"step": 30, "records_crc32": zlib.crc32(content)}}))
    for cut, is_told in ((0, False), (1, True), (2, True)):
        (run / "metrics.jsonl").write_bytes(b"".join(content.splitlines(True)[: 32 - cut]))
        assert any(lost in problem for problem in read_run(run).problems) == is_told
        assert status.main([str(run)]) == 0
        assert (lost in capsys.readouterr().out) == is_told
    (run / "metrics.jsonl").write_bytes(content + b'{"step": 30, "set": "more", "valid_loss": 1.0}\n')
    assert read_run(run).problems == [], "what comes after the save is nobody's loss"


def test_settings_that_have_changed_are_named_and_not_shown(tmp_path):
    run = write_run(tmp_path / "a")
    text = (run / "config.toml").read_text()
    sealed_text = f"# sha256 of what follows: {hashlib.sha256(text.encode()).hexdigest()}\n{text}"
    for written, is_whole in ((sealed_text, True), (sealed_text.replace("Llama", "Llamb"), False)):
        (run / "config.toml").write_text(written)
        found = read_run(run)
        assert ("model" in found.config, bool(found.problems)) == (is_whole, not is_whole)


def test_several_runs_are_laid_over_one_another_with_what_differs(tmp_path, monkeypatch):
    runs = [write_run(tmp_path / name, lr=lr) for name, lr in (("a", 1e-3), ("b$x$_", 2e-3), ("_c", 1e-3))]
    monkeypatch.chdir(tmp_path)
    assert report.main([*map(str, runs), "--no_pictures"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "optim.lr" in page and "0.002" in page and "In these the runs differ" in page
    svg = base64.b64decode(re.findall(r"svg\+xml;base64,([^\"]+)", page)[0]).decode()
    for name in ("a training", "b$x$_ training", "_c training"):
        assert name in svg, name


def test_a_run_that_is_torn_damaged_or_just_begun_has_a_page(tmp_path, capsys):
    run = write_run(tmp_path / "a", ended="")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('nonsense\n[1]\n{"step": 31, "loss": NaN}\n{"step": "x", "loss": "y"}\n{"step": 31, "lo')
    (run / "goodput.json").write_text('{"attempts": [{"began": 1}]}')
    (run / "events.jsonl").write_bytes(b"\xff\xfe{\n")
    (run / "export.json").write_text("[")
    (run / "plan.json").mkdir()
    assert report.main([str(run)]) == 0
    for told in (capsys.readouterr().out, page_of(run)):
        assert "remove it to begin the account anew" in told
        assert f"{run}/metrics.jsonl: 3 lines are not as they were written, the first is line 33; left out" in told
        assert f"{run}/events.jsonl: 1 lines are not as they were written, the first is line 1; left out" in told
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.toml").write_text("name = 'begun'\n")
    assert report.main([str(begun), "--no_pictures"]) == 0
    assert "not begun" in page_of(begun)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["{tmp}/none"], "not a run"),
        ([], "run: required"),
        (["{tmp}/a", "--output", "x.pdf"], "expected the name of an HTML file"),
    ],
)
def test_mistakes_are_one_line(tmp_path, flags, told):
    write_run(tmp_path / "a")
    with pytest.raises(ValueError, match=told):
        report.main([flag.format(tmp=tmp_path) for flag in flags])


def test_no_spike_is_lost_in_a_long_line():
    values = [1.0] * 100_000
    values[12_345], values[77_777] = 9.0, -3.0
    x, y = thinned(list(enumerate(values)))
    assert len(x) <= 800 and x == sorted(x)
    assert dict(zip(x, y, strict=True))[12_345] == 9.0 and dict(zip(x, y, strict=True))[77_777] == -3.0
    chart = Chart("loss", "loss")
    chart.add("a", zip(x, y, strict=True), 0)
    assert svg_bytes(draw(chart)) == svg_bytes(draw(chart))


def test_a_running_page_is_reloaded_and_a_finished_one_is_not(tmp_path):
    for name, ended, reloaded in (("a", "", True), ("b", "finished", False)):
        run = write_run(tmp_path / name, ended=ended)
        assert report.main([str(run), "--no_pictures"]) == 0
        assert ('http-equiv="refresh"' in page_of(run)) == reloaded


# ---- status


@pytest.mark.parametrize(
    ("ended", "age", "word", "told"),
    [
        ("", 5, "running", "running, 0 s left"),
        ("", 600, "silent", "silent for 10:00 min: killed, or stuck"),
        ("finished", 600, "finished", "finished 10:00 min ago"),
        ("stopped on request", 600, "stopped", "stopped 10:00 min ago"),
        ("ValueError: training has diverged", 200000, "failed", "ValueError: training has diverged 2 days ago"),
    ],
)
def test_the_state_of_a_run(tmp_path, ended, age, word, told):
    state = state_of(read_run(write_run(tmp_path / "a", ended=ended, age=age)))
    assert (state.word, state.told, state.progress) == (word, told, "30 of 30")


def test_the_status_of_all_runs_and_of_one(tmp_path, capsys):  # run="runs" is where it looks by default
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b\x1b[31m", ended="", age=5)
    assert status.main([str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "finished" in printed and "running" in printed and "1 spike" in printed
    assert status.main([str(tmp_path / "runs" / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("step 30 of 30") and "held out (valid): 3.0000 at first, 1.2500 now, best 1.2500" in lines
    assert any("spike: loss 9 at step 7" in line for line in lines)
    assert status.main([str(tmp_path / "runs"), "--json"]) == 0
    facts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["state"], each["step"], each["total_steps"]) for each in facts] == [
        ("finished", 30, 30),
        ("running", 30, 30),
    ]
    assert facts[0]["dollars"] == pytest.approx(100 / 3600 * 8 * 2.31)


@pytest.mark.parametrize(
    ("name", "told"), [("none", "no such folder"), ("empty", "neither a run nor a folder of runs")]
)
def test_where_there_is_no_run(tmp_path, name, told):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=told):
        status.main([str(tmp_path / name)])


# ---- while the run goes on


def test_a_run_writes_its_report_in_another_process_now_and_then(tmp_path, monkeypatch):
    run = write_run(tmp_path / "a")
    monkeypatch.setenv("RANK", "0")  # which must not make the report a rank of a job
    shown = LiveReport(run, enabled=True)
    shown.refresh()
    assert shown.process is None  # within the first minute
    monkeypatch.setattr(live_report, "BETWEEN", 0.0)
    shown.refresh()
    shown.close()
    assert shown.process.returncode == 0 and "3.0000 → 1.2500" in page_of(run)
    assert not (run / "report").exists()


def test_a_report_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(live_report, "BETWEEN", 0.0)
    monkeypatch.setattr(live_report.sys, "executable", "/none/python")
    shown = LiveReport(tmp_path / "gone", enabled=True)
    shown.refresh()
    shown.close()
    other = LiveReport(tmp_path, enabled=False)
    other.refresh()
    assert other.process is None
