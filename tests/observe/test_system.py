"""What the machine says of itself."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from logtrain.observe.system import peak_memory_gib
from tests.support import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc")
def test_peak_memory_is_in_gib(monkeypatch):
    peak_kib = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    assert peak_memory_gib(torch.device("cpu")) == pytest.approx(peak_kib / 2**20, rel=0.05)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 54 * 2**30)
    assert peak_memory_gib(torch.device("cuda", 0)) == 54


@pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc")
def test_the_age_of_a_process_is_that_since_its_start():
    before = time.monotonic()
    program = "import time; from logtrain.observe.system import age_of_process as age; time.sleep(0.5); print(age())"
    age = float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT).stdout)
    assert 0.5 <= age <= time.monotonic() - before
