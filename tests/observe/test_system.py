"""What the machine says of itself."""

import re
import sys
from pathlib import Path

import pytest
import torch

from logtrain.observe.system import peak_memory_gib


@pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc")
def test_peak_memory_is_in_gib(monkeypatch):
    peak_kib = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    assert peak_memory_gib(torch.device("cpu")) == pytest.approx(peak_kib / 2**20, rel=0.05)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 54 * 2**30)
    assert peak_memory_gib(torch.device("cuda", 0)) == 54
