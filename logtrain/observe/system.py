"""What the machine says of itself."""

import resource
import sys

import torch


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: by tensors on a cuda device, by the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
