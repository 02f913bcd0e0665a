"""Figures of the machine that a run is on."""

import resource
import sys

import torch


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that was in use so far, in GiB: by tensors on a CUDA device, by the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
