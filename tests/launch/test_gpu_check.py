"""The check for GPU machines, as far as a CPU goes: every part of it runs to its table, cut off or not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import __main__ as check
from benchmarks.gpu_check.figures import figures_in, predictions_in
from benchmarks.gpu_check.parts import LIMIT, Part, kernel_parts, step_parts
from benchmarks.gpu_check.verdicts import read_predictions, table
from logtrain.planning.gpu_file import gpu_of
from tests.support import ROOT

CHECK = ["bash", str(ROOT / "launch" / "gpu_check.sh"), "--as-is"]
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
ENVIRONMENT.pop("TRITON_INTERPRET", None)  # set for this process's tests


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="here the check itself is what to run: launch/gpu_check.sh")
@pytest.mark.parametrize("command", ["step", "kernels", "node"])
def test_every_part_runs_to_its_table(command, tmp_path):
    output = tmp_path / "out"
    output.mkdir()  # empty: as good as a new one
    run = [*CHECK, command, "--output", output, "--limit", "1200"]  # a shared machine may be slow
    result = subprocess.run(run, env=ENVIRONMENT, capture_output=True, text=True, timeout=1300)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = (output / "table.txt").read_text()
    assert "cpu: not judged" in lines
    assert "OUTSIDE" not in lines
    figures = {f["figure"]: f["value"] for f in map(json.loads, (output / "figures.jsonl").read_text().splitlines())}
    assert all(name in lines for name in figures)
    if command == "step":
        assert figures["cpt, one rank of 8: share of the parameters held"] == 1 / 8
        assert figures["transformers: largest difference of its losses from ours"] < 1e-4
        assert (output / "trace.json.gz").stat().st_size > 1000
        assert "not judged on a CPU" in lines  # beside what was predicted of a GPU
    if command == "kernels":
        assert {"rms_norm: reference", "attention_row_backward: eager", "decode, 2 sequences, plain"} <= set(figures)
        assert 5 < figures["curve of 8 steps: loss of step 8"] < 8  # of random weights: 7.6
    if command == "node":
        assert figures["node of 1: the loss is finite"] == 1.0


def test_an_output_with_something_in_it_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "figures.jsonl").touch()
    monkeypatch.setattr(sys, "argv", ["gpu_check", "step", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        check.main()
    assert ended.value.code == 2
    assert f"{tmp_path} is not empty" in capsys.readouterr().err


PRINTS = 'import json, time; print(json.dumps({"figure": "a", "value": 1.05, "unit": "s"}), flush=True); '


def test_a_part_that_hangs_or_fails_costs_no_other_part_its_figures(tmp_path, capsys):
    run = check.Check(tmp_path, limit=60)
    run.predictions = {"a": {"value": 1.0, "unit": "s", "band": 0.08}}
    run.run(Part("hangs", ("-c", PRINTS + "time.sleep(60)"), 1, 2))
    run.run(Part("fails", ("-c", PRINTS + "raise SystemExit(3)"), 1, 30))
    run.run(Part("works", ("-c", PRINTS), 1, 30))
    run.ends = 0.0
    run.run(Part("late", ("-c", PRINTS), 1, 30))
    assert run.finish("NVIDIA H200") == 1
    statuses = {name: text.split(" after")[0] for name, text in run.statuses.items()}
    late = "not begun: no time left"
    assert statuses == {"hangs": "cut off", "fails": "FAILED with 3", "works": "done", "late": late}
    kept = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert kept == [{"figure": "a", "value": 1.05, "unit": "s"}] * 3
    assert (tmp_path / "table.txt").read_text().count("1.050  held (8%)") == 3
    assert "hangs: cut off" in capsys.readouterr().out


def test_a_figure_is_judged_by_its_band_and_only_on_the_gpu_of_the_predictions():
    band = {"value": 10.0, "unit": "s", "band": 0.1}
    values = {"in": 11.0, "out": 8.9, "new": 1.0}
    figures = [{"figure": name, "value": value, "unit": "s"} for name, value in values.items()]
    predictions = {"in": band, "out": band, "absent": band}
    _, *lines = table(figures, predictions, on_gpu=True)
    assert [line.split() for line in lines] == [
        ["in,", "s", "10.000", "11.000", "1.100", "held", "(10%)"],
        ["out,", "s", "10.000", "8.900", "0.890", "OUTSIDE", "(10%)"],
        ["new,", "s", "1.000"],
        ["absent,", "s", "10.000", "-"],
    ]
    _, *lines = table(figures, predictions, on_gpu=False)
    assert [line.split()[2:] for line in lines[:2]] == [
        ["10.000", measured, "not", "judged", "on", "a", "CPU"] for measured in ("11.000", "8.900")
    ]
    nan = [{"figure": "in", "value": float("nan"), "unit": "s"}]
    assert "OUTSIDE" in table(nan, predictions, on_gpu=True)[1]


@pytest.mark.parametrize(
    ("device", "gpu"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA L4", None),
        ("cpu", None),
    ],
)
def test_a_gpu_is_judged_by_its_own_description(device, gpu):
    assert gpu_of(device) == gpu


def test_figures_and_predictions_are_told_apart_from_what_else_is_printed():
    lines = ['{"figure": "a", "value": 1.0, "unit": "s"}', "noise", '{"op": 1}']
    lines.append('{"prediction": "a", "value": 2.0, "unit": "s", "band": 0.1}')
    assert figures_in(lines) == [{"figure": "a", "value": 1.0, "unit": "s"}]
    assert predictions_in(lines) == {"a": {"value": 2.0, "unit": "s", "band": 0.1}}


def test_both_commands_end_within_nine_minutes_by_estimate(tmp_path):
    for parts in (step_parts(tmp_path), kernel_parts()):
        assert sum(part.expected for part in parts) < LIMIT - 60
        assert all(part.expected < part.limit for part in parts)


def test_what_was_predicted_of_an_h200_names_figures_that_the_check_tells():
    predictions = read_predictions("h200")
    step = predictions["cpt, one rank of 8, links 3.7e+11: step"]["value"]
    parts = [p["value"] for name, p in predictions.items() if "links 3.7e+11: " in name and p["band"] == 0.10]
    assert 0.9 * step < sum(parts) < step
    assert {"copy", "rms_norm: logtrain", "decode, 8 sequences, captured"} <= set(predictions)
