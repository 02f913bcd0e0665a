"""Peak throughput of GPUs by NVIDIA's datasheets. Nothing here imports torch, so that a plan knows its GPU at once."""

import re

# bf16 FLOP/s of the tensor cores without sparsity; from Hopper on the datasheets print the figure with sparsity, twice
# as much (H100 SXM: 1,979e12). An entry fits a name that has all its words; the first that fits counts.
PEAK_FLOPS = {
    "H100 PCIe": 756.5e12,
    "H100 NVL": 835.5e12,
    "H100": 989.4e12,  # SXM: "NVIDIA H100 80GB HBM3"
    "H200 NVL": 835.5e12,
    "H200": 989.4e12,
    "GH200": 989.4e12,
    "H800": 989.4e12,
    "A100": 312e12,
    "A800": 312e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "L4": 121e12,
}


def peak_flops_of(gpu: str) -> float | None:
    """Returns the peak dense bf16 FLOP/s of a GPU by its name, as the driver or a file of `logtrain/planning/gpus`
    spells it. Returns None where the peak is not known: for other GPUs, and for a MIG slice of one.
    """
    words = set(re.split(r"[\s-]", gpu))
    if "MIG" in words:
        return None
    return next((flops for entry, flops in PEAK_FLOPS.items() if words.issuperset(entry.split())), None)
