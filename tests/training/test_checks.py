"""What a run refuses before anything large is loaded."""

from dataclasses import replace

import pytest
import torch
from torch.torch_version import TorchVersion

from logtrain.core.atomic import write_file
from logtrain.planning.shape import read_shape
from logtrain.planning.trace import trace_step
from logtrain.training import checks
from logtrain.training.config import ParallelConfig, RunConfig
from tests.support.precision import NEEDS_2_13

PLAIN = RunConfig(name="run", model="model", data="data")


@NEEDS_2_13
def test_an_older_torch_runs_all_but_what_it_gets_wrong(monkeypatch):
    compiled, symmetric = replace(PLAIN, compile=True), replace(PLAIN, parallel=ParallelConfig(symmetric_memory=True))
    for config in (PLAIN, compiled, symmetric):
        checks.check_torch(config)  # the installed one, which setup.py asks for
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.11.0+cu130"))
    monkeypatch.setattr(checks, "FSDPModule", object)
    checks.check_torch(PLAIN)
    with pytest.raises(ValueError, match=r"^compile: torch 2\.11\.0\+cu130 .*install torch >= 2\.13$"):
        checks.check_torch(compiled)
    with pytest.raises(ValueError, match=r"^parallel\.symmetric_memory: torch 2\.11.*install torch >= 2\.13$"):
        checks.check_torch(symmetric)
    with pytest.raises(ValueError, match=r"^a plan needs torch >= 2\.13, and this is 2\.11"):
        trace_step(PLAIN, read_shape("Llama-3.2-1B"), 1)


@pytest.mark.parametrize("letter", ["n", "日"])
def test_a_name_has_room_for_the_files_beside_the_run(letter, tmp_path):
    """The rehearsal's are the longest; what a name has is bytes, not letters."""
    longest = letter * (231 // len(letter.encode()))
    replace(PLAIN, name=longest)
    write_file(tmp_path / f"{longest}.rehearsal.json", b"{}")
    with pytest.raises(ValueError, match=r"^name = .*\.\.\.': has \d+ bytes, at most 231 leave room .*; shorten it$"):
        replace(PLAIN, name=longest + letter)
