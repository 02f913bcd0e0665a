"""The files of a run that tell of it: one that is gone, or lies in another one's place, is named where it is read."""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from logtrain import report, status
from logtrain.core.origin import origin, sealed_in
from logtrain.core.run_folder import enter_run_folder
from logtrain.core.sealed_lines import add, adding
from logtrain.core.untrusted import sealed
from logtrain.observe.goodput import Goodput
from logtrain.observe.health import Event
from logtrain.observe.metrics import Metrics
from logtrain.observe.run_files import read_run
from logtrain.training.publish import ExportResult

FILES = ("metrics.jsonl", "events.jsonl", "system.jsonl", "goodput.json", "export.json", "adapter.json")
FILES += ("forgetting.json",)


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = "run"


def write_run(folder: Path, is_compared: bool = True) -> Path:
    """A finished run, as its own parts write it. `is_compared`: whether it wrote forgetting.json."""
    enter_run_folder(folder, Config(name=folder.name), False, ()).close()
    goodput = Goodput()
    goodput.open(folder, 0, total_steps=2)
    with Metrics(folder, enabled=True, total_steps=2) as metrics:
        metrics.valid({"step": 0, "set": "valid", "valid_loss": 3.0})
        metrics.train({"step": 1, "loss": 2.0, "lr": 1e-3})
        metrics.train({"step": 2, "loss": 1.5, "lr": 1e-3})
        metrics.valid({"step": 2, "set": "valid", "valid_loss": 2.5})
        metrics.event(Event(2, "spike", f"the loss of {folder.name} has risen"))
    with adding(folder / "system.jsonl") as stream:
        add(stream, {"time": time.time(), "node": "n", "cpu": 50.0, "gpus": [], **origin(folder, "system")})
    for name in ("export", "adapter"):
        (folder / name).mkdir()
        ExportResult(1.5, 1.51, "float32").write(folder / name, origin(folder, name))
    facts = {"budget": 0.0, "is_within": None, "sets": [{"name": "valid", "before": 3.0, "after": 2.5, "rise": -0.1}]}
    if is_compared:
        (folder / "forgetting.json").write_bytes(sealed_in(folder / "forgetting.json", "forgetting", facts))
    goodput.end("finished")
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    return [write_run(tmp_path / name) for name in ("a", "b")]


def told(run: Path, problem: str, capsys) -> None:
    """Assert that report and status of a run, and the status of all, tell of a problem."""
    assert [found for found in read_run(run).problems if problem in found]
    assert report.main([str(run), "--no_pictures"]) == 0
    assert problem in (run / "report.html").read_text() and problem in capsys.readouterr().out
    for where in (run, run.parent):
        assert status.main([str(where)]) == 0
        assert f"problem: {run}" in capsys.readouterr().out


def test_a_whole_run_has_no_problem(runs, capsys):
    for run in runs:
        found = read_run(run)
        assert not found.problems and found.export and found.forgetting and found.attempts
        assert [len(found.steps), len(found.events), len(found.system["n"])] == [2, 1, 1]
        assert all("file" not in one and "run" not in one for one in [*found.steps, *found.events])


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_named(runs, name, capsys):
    (runs[0] / name).unlink()
    told(runs[0], f"{runs[0] / name}: is missing", capsys)
    assert len(read_run(runs[0]).problems) == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "system.jsonl"])
@pytest.mark.parametrize("left", [0, -1])
def test_whole_lines_that_are_lost_from_the_end_are_told(runs, name, left, capsys):
    """As an empty file of another run in the place of the own one, too."""
    run = runs[0]
    lines = (run / name).read_bytes().splitlines(keepends=True)
    (run / name).write_bytes(b"".join(lines[:left]))
    told(run, f"{run / name}: {len(lines[left:]):,} lines are lost of which goodput.json knows", capsys)


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "system.jsonl"])
@pytest.mark.parametrize("more", [b"{}", b"{}\n", b"\0", b"[]\n", b"null\n"])
def test_a_line_that_no_run_has_written_is_told_and_left_out(runs, name, more, capsys):
    before = read_run(runs[0])
    with open(runs[0] / name, "ab") as stream:
        stream.write(more)
    told(runs[0], f"{runs[0] / name}: 1 lines are not as they were written", capsys)
    after = read_run(runs[0])
    assert (after.steps, after.events, after.system) == (before.steps, before.events, before.system)


def test_what_a_run_adds_and_cuts_off_itself_is_no_loss(runs):
    run = runs[0]
    with open(run / "events.jsonl", "ab") as stream:
        stream.write(b'{"torn')
    goodput = Goodput()
    goodput.open(run, 1, total_steps=2)
    assert not read_run(run).problems, "before the records after the checkpoint are cut off"
    with Metrics(run, enabled=True, total_steps=2, resume_step=1) as metrics:
        goodput.write()
        assert not read_run(run).problems
        metrics.event(Event(2, "spike", "it has risen again"))
        for step in range(2, 40):
            metrics.train({"step": step, "loss": 1.5, "lr": 1e-3})
    goodput.end("finished")
    counted = read_run(run).attempts[-1].lines
    assert counted.items() >= {"metrics.jsonl": 40, "events.jsonl": 2, "system.jsonl": 1}.items()
    assert not read_run(run).problems and len(read_run(run).events) == 2


def test_a_validation_that_is_made_again_is_no_loss(runs):
    """Nothing is counted between the cut and the longer line that fills the file up again."""
    run, goodput = runs[0], Goodput()
    size = (run / "metrics.jsonl").stat().st_size
    goodput.open(run, 2, total_steps=3)
    with Metrics(run, enabled=True, total_steps=3, resume_step=2, validates=True) as metrics:
        metrics.valid({"step": 2, "set": "valid", "valid_loss": 2.5, "time": 1.25})
        assert (run / "metrics.jsonl").stat().st_size > size
        goodput.write()
        metrics.train({"step": 3, "loss": 1.5, "lr": 1e-3})
    goodput.end("finished")
    assert read_run(run).attempts[-1].lines["metrics.jsonl"] == 5
    assert not read_run(run).problems


def test_a_run_that_goes_on_elsewhere_has_lost_nothing_that_is_on_its_way(runs, monkeypatch):
    """goodput.json is renamed into its place and seen at once; a file that grows is seen up to 30 s later over NFS."""
    run, goodput = runs[0], Goodput()
    goodput.open(run, 2, total_steps=3)
    goodput.write()
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    assert not read_run(run).problems
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 70)
    assert "metrics.jsonl: 1 lines are lost of which goodput.json knows" in read_run(run).problems[0]


def test_a_run_of_an_older_version_misses_nothing_that_it_never_had(runs):
    run = runs[0]
    text = (run / "config.toml").read_text().splitlines(keepends=True)
    (run / "config.toml").write_text("".join(line for line in text if not line.startswith("#")))
    for name in ("events.jsonl", "system.jsonl", "goodput.json", "export.json", "forgetting.json"):
        (run / name).unlink()
    assert read_run(run).problems == []


def test_a_run_that_compared_nothing_misses_no_comparison(tmp_path):
    """As one that went on from a checkpoint which did not have the losses before the first step."""
    assert read_run(write_run(tmp_path / "a", is_compared=False)).problems == []


def test_a_checkpoint_of_another_run_is_named(runs, capsys):
    run, other = runs
    for whose, is_told in ((run, False), (other, True)):
        saved = run / "checkpoints" / "step-000002" / "checkpoint.json"
        saved.parent.mkdir(parents=True, exist_ok=True)
        saved.write_bytes(sealed({"state": {"step": 2}, **origin(whose, "checkpoint")}))
        assert bool(read_run(run).problems) == is_told
    told(run, f"{saved}: another file lies in its place: checkpoint of run {origin(other, '')['run']}", capsys)


def test_a_run_that_has_not_begun_misses_nothing(tmp_path):
    enter_run_folder(tmp_path / "a", Config(name="a"), False, ()).close()
    assert read_run(tmp_path / "a").problems == []
    Goodput().open(tmp_path / "a", 0, total_steps=2)
    assert read_run(tmp_path / "a").problems == [], "it was killed in that moment"


PAIRS = [(one, other) for one, other in itertools.combinations(FILES, 2) if Path(one).suffix == Path(other).suffix]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_files_of_a_run_that_are_exchanged_are_named(runs, one, other):
    run = runs[0]
    a, b = (run / one).read_bytes(), (run / other).read_bytes()
    (run / one).write_bytes(b)
    (run / other).write_bytes(a)
    found = read_run(run)
    for name in (one, other):
        assert any(problem.startswith(f"{run / name}: ") for problem in found.problems), name


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_run_is_named_and_not_shown(runs, name, capsys):
    run, other = runs
    (run / name).write_bytes((other / name).read_bytes())
    told(run, origin(other, "")["run"], capsys)
    assert "loss of b" not in (run / "report.html").read_text()


def test_the_settings_of_another_run_are_told_by_all_that_is_there(runs):
    run, other = runs
    (run / "config.toml").write_bytes((other / "config.toml").read_bytes())
    assert len(read_run(run).problems) == len(FILES)


def test_a_run_that_goes_on_has_no_records_of_another(runs, capsys):
    run, other = runs
    (run / "metrics.jsonl").write_bytes((other / "metrics.jsonl").read_bytes())
    Metrics(run, enabled=True, total_steps=2, resume_step=2).close()
    assert "metrics.jsonl: has no record of step 2, at which the run goes on" in capsys.readouterr().out
    assert read_run(run).steps == []


@pytest.mark.parametrize("left", [0, 1, 40])
def test_settings_that_were_cut_off_are_told(runs, left):
    """Nothing is left of them, nor of the hash, so they look like those of an older version."""
    file = runs[0] / "config.toml"
    file.write_bytes(file.read_bytes()[:left])
    assert f"{file}: holds no setting" in " ".join(read_run(runs[0]).problems)
