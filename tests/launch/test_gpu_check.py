"""The check for GPU machines, as far as a CPU goes: every step of it runs and leaves what it says."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import measured as measured_beside
from tests.support import ROOT

pytestmark = pytest.mark.slow

CHECK = ["bash", str(ROOT / "launch" / "gpu_check.sh")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the check itself is what to run: launch/gpu_check.sh")
def test_every_step_runs_and_leaves_its_result(tmp_path):
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    environment.pop("TRITON_INTERPRET", None)  # set for this process's tests
    result = subprocess.run(
        [*CHECK, "--output", tmp_path / "out"], env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    out = tmp_path / "out"
    assert "passed" in (out / "tests.txt").read_text()
    lines = [json.loads(line) for line in (out / "kernels.jsonl").read_text().splitlines() if line.startswith("{")]
    assert {"rms_norm", "rope", "swiglu_backward", "head_and_loss"} <= {line["op"] for line in lines}
    speed, plan = (json.loads((out / name).read_text()) for name in ("speed.json", "plan.json"))
    assert speed["loss_finite"]
    assert speed["tokens_per_second_per_gpu"] > 0
    assert plan["host_syncs"] == 0
    assert json.loads((out / "trace.json").read_text())["traceEvents"]
    assert "peak_memory_gib" in (out / "measured.txt").read_text()


def test_an_output_that_exists_is_refused(tmp_path):
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    result = subprocess.run([*CHECK, "--output", tmp_path], env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"{tmp_path} exists already" in result.stderr


def test_a_step_a_tenth_slower_than_the_ledger_is_told():
    recorded = {"tokens_per_second_per_gpu": 10_000.0}
    for measured, kept in ((12_000.0, True), (9_001.0, True), (8_999.0, False)):
        line, answer = measured_beside.against_ledger(recorded, {"tokens_per_second_per_gpu": measured})
        assert answer is kept
        assert ("NOT KEPT" in line) is not kept


def test_predicted_and_measured_stand_beside_each_other():
    plan = dict.fromkeys(measured_beside.FIGURES, 2.0)
    speed = {**dict.fromkeys(measured_beside.FIGURES, 1.0), "gpus": 8, "device": "NVIDIA H100 80GB HBM3"}
    _, _, *rows = measured_beside.lines(plan, speed)
    assert [row.split() for row in rows] == [[name, "2.000", "1.000", "0.500"] for name in measured_beside.FIGURES]
