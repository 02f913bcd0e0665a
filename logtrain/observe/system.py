"""Figures of the machine that a run is on."""

import os
import resource
import sys
import time
from pathlib import Path

import psutil
import torch


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that was in use so far, in GiB: by tensors on a CUDA device, by the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def age_of_process() -> float:
    """Seconds since this process was started, from the kernel's clock: psutil's begins at a whole second."""
    if not sys.platform.startswith("linux"):
        return time.time() - psutil.Process().create_time()
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), starttime
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
