"""The memory that a device has for a model and its cache."""

import os

import torch

GIB = 2**30
CPU_CACHE = 2 * GIB  # bytes for keys and values where the user names no size


def device_name(device: torch.device) -> str:
    """The name of a device in messages: a GPU's product name, or "the CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def free_bytes(device: torch.device) -> int:
    """The bytes that are free on a GPU, or all memory of the machine for the CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # memory that PyTorch keeps of an earlier model is free too
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(what: str, size: int, device: torch.device) -> None:
    """Raises ValueError if `size` is more bytes than the device has. `what`: the name of what takes them."""
    if size > (free := free_bytes(device)):
        raise ValueError(
            f"{what}: {size / GIB:.1f} GiB, more than the {free / GIB:.1f} GiB that {device_name(device)} has"
        )


def cache_bytes(gib: float, device: torch.device) -> int:
    """Bytes for keys and values: `gib` GiB, or for 0 four fifths of the free memory of a GPU, or 2 GiB on a CPU. The
    rest is for activations, which by their shapes take 0.5 GiB in a step of 4,096 tokens of Llama-3.1-8B.
    """
    if gib:
        return int(gib * GIB)
    return CPU_CACHE if device.type == "cpu" else free_bytes(device) * 4 // 5
