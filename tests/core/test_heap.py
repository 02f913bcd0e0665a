import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from logtrain.core.heap import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
for _ in range(16):
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is asked")
def test_memory_that_is_kept_costs_no_new_pages():
    def faults(*arguments: str) -> int:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") * 10 < faults()
