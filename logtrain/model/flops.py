"""The two sides of MFU (model FLOPs utilisation): the FLOPs that training takes, and those that a GPU could do."""

import torch

from logtrain.model.datasheet import peak_flops_of
from logtrain.model.llama import LlamaConfig


def model_flops(shape: LlamaConfig, tokens: int, attention_pairs: int, adapters: int = 0) -> float:
    """Returns the FLOPs that training on `tokens` takes: forward and backward, nothing counted twice for activation
    recomputation.

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
    """Returns the peak dense bf16 FLOP/s of one device, or None where it is not known: for other GPUs and for CPUs."""
    return peak_flops_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
