"""Small models, batches for them, and what they give: beside transformers' LlamaForCausalLM, or beside themselves."""

from pathlib import Path

import torch
import torch.nn.functional as F

from logtrain.core.batch import IGNORE, Batch
from logtrain.model.llama import Llama, LlamaConfig
from logtrain.model.weights import RandomWeights, read_model

CPU = torch.device("cpu")

TINY = LlamaConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=112,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    head_dim=8,
    norm_eps=1e-5,
    rope_theta=10_000.0,
    rope_scaling=None,
    max_positions=512,
    tied=False,
)


def random_model(config: LlamaConfig) -> Llama:
    """A model that is always the same for one config, in fp32 on the CPU."""
    return read_model(config, RandomWeights(config, seed=1), CPU, torch.float32)


def load_transformers(folder: Path):
    """transformers' model of a folder, in fp32."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def packed(documents: list[torch.Tensor]) -> Batch:
    """Documents in one row; `cu_seqlens` is padded by two."""
    lengths = [len(document) for document in documents]
    labels = [torch.cat((document[1:], torch.tensor([IGNORE]))) for document in documents]
    cu_seqlens = torch.tensor([0, *lengths, 0, 0]).cumsum(0).int()
    positions = torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths])
    return Batch(torch.cat(documents), torch.cat(labels), positions, cu_seqlens, max(lengths))


def logits(model: Llama, batch: Batch) -> torch.Tensor:
    """The logits of every token: [T, V]."""
    return model(batch._replace(labels_T=None))


def random_documents(lengths: list[int], vocab_size: int) -> list[torch.Tensor]:
    """Token ids, always the same ones."""
    generator = torch.Generator().manual_seed(1309)
    return [torch.randint(vocab_size, (length,), generator=generator) for length in lengths]


def over_the_whole_row(q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, *_) -> torch.Tensor:
    """Causal attention over the whole row, which reads no lengths: the reference for CPUs splits it on the host, where
    a compiler cannot follow.
    """
    q, k, v = (x.transpose(0, 1)[None] for x in (q_TNH, k_TKH, v_TKH))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)


def gradients(llama: Llama, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch, and its gradient by every parameter."""
    llama.zero_grad()
    loss = llama(batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in llama.named_parameters()}


def relative_difference(ours: torch.Tensor, other: torch.Tensor) -> float:
    """Norm of the difference over the norm of `other`."""
    return ((ours - other).norm() / other.norm()).item()
