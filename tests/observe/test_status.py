"""The table of runs has a line for each, on terminals of any width and with names of any length."""

import re
import time
from pathlib import Path

import pytest
from rich.cells import cell_len

from logtrain.observe.goodput import Attempt
from logtrain.observe.run_files import RunFiles
from logtrain.observe.status import print_table

HEADINGS = ["run", "state", "step", "loss", "held out", "tokens/s", "health", "host"]


def run_called(name: str) -> RunFiles:
    """A run that was killed yesterday."""
    then = time.time() - 86400
    run = RunFiles(Path(name), name)
    host = "gpu-node-0017.cluster.example.org"
    run.attempts = [Attempt(began=then - 60, last=then, devices=8, host=host, total_steps=4330)]
    run.steps = [{"step": 1200, "loss": 1.23456, "tokens_per_second": 123456.0}]
    run.validations = {"valid": [{"step": 1000, "valid_loss": 1.5}]}
    run.events = [{"time": then, "kind": kind} for kind in ("spike", "spike", "straggler")]
    return run


def told(names: list[str], capsys) -> list[str]:
    """The lines of the table."""
    print_table([run_called(name) for name in names])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    lines = [line.rstrip() for line in plain.splitlines()]
    return [line for line in lines if line and not set(line) <= set(" ─╶╴")]


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(200, set()), (120, {"host"}), (110, {"host", "tokens/s"}), (99, {"host", "tokens/s", "held out"})],
)
def test_columns_are_left_out_from_the_least_important(width, left_out, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    heading, *lines = told(["nlplog-8b", "chat-8b-lora"], capsys)
    assert [name for name in HEADINGS if name in heading] == [name for name in HEADINGS if name not in left_out]
    assert [line.split()[0] for line in lines] == ["nlplog-8b", "chat-8b-lora"]
    assert all("2 spike, 1 straggler" in line and "1,200 of 4,330" in line for line in lines)


@pytest.mark.parametrize("width", [20, 40, 80, 100])
@pytest.mark.parametrize("common", ["nlplog-" * 20, "日志" * 30], ids=["narrow", "wide"])
def test_long_names_take_a_line_each_and_are_told_apart(width, common, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    heading, *lines = told([f"{common}seed-1", f"{common}seed-2"], capsys)
    assert len(lines) == 2 and all(cell_len(line) <= width for line in (heading, *lines))
    if width > 60:
        assert [line.split()[0][-1] for line in lines] == ["1", "2"] and "health" in heading
        assert all("1,200 of 4,330  1.2346" in line for line in lines), "figures are whole, or not there"


def test_nothing_is_left_out_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    names = ["nlplog-8b", "n" * 255]
    heading, *lines = told(names, capsys)
    assert heading.split() == " ".join(HEADINGS).split()
    assert [line.split()[0] for line in lines] == names
    assert all(line.endswith("gpu-node-0017.cluster.example.org") for line in lines)
