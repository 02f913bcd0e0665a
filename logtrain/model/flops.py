"""FLOPs that training takes, and those that a GPU could do: what MFU is the ratio of."""

import re

import torch

from logtrain.model.llama import LlamaConfig

# bf16 FLOP/s of the tensor cores without sparsity, from NVIDIA's datasheets; from Hopper on these print the figure with
# sparsity, twice as much (H100 SXM: 1,979e12). An entry fits a name that has all its words; the first that fits counts.
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


def model_flops(shape: LlamaConfig, tokens: int, attention_pairs: int, adapters: int = 0) -> float:
    """FLOPs that training on `tokens` takes: forward and backward, nothing counted twice for activation recomputation.

    Each token takes 6 for each weight of a matrix product (2 forward, 4 backward): the head is one, the embedding not.
    With LoRA, whose adapters have so many parameters, it takes 6 for each of these and 4 for each frozen weight, which
    has no gradient. Each pair of query and key takes 12 * layers * heads * head_dim. That is PaLM's count (Chowdhery et
    al. 2022, arXiv:2204.02311, appendix B), but only of pairs that the mask lets through: a document has length (length
    + 1) / 2.
    """
    heads = 2 * shape.num_heads + 2 * shape.num_kv_heads  # q and out; k and v
    block = shape.hidden_size * (heads * shape.head_dim + 3 * shape.intermediate_size)
    weights = shape.num_layers * block + shape.hidden_size * shape.vocab_size
    products = 4 * weights + 6 * adapters if adapters else 6 * weights
    return tokens * products + 12 * attention_pairs * shape.num_layers * shape.num_heads * shape.head_dim


def peak_flops(device: torch.device) -> float | None:
    """Peak dense bf16 FLOP/s of one device; None where it is not known: other GPUs, a MIG slice of one, CPUs."""
    return peak_flops_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_flops_of(gpu: str) -> float | None:
    """Peak dense bf16 FLOP/s of the GPU of this name, as the driver has it or a file of `logtrain/planning/gpus` does;
    None where it is not known.
    """
    words = set(re.split(r"[\s-]", gpu))
    if "MIG" in words:
        return None
    return next((flops for entry, flops in PEAK_FLOPS.items() if words.issuperset(entry.split())), None)
