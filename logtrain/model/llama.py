"""The Llama decoder (Llama 2, 3, 3.1, 3.2): packed rows of tokens in, summed loss out.

Shapes in names: T tokens of the packed rows, D hidden size, F feed-forward size, N query heads, K key-value heads, H
head size, V vocabulary.

The residual stream travels beside the last sublayer's output, not yet added: every norm is then one `add_rms_norm`.
The query, key and value projections are one matrix, gate and up another, so that a block runs four matrix products.
`hf.py` knows the published names.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from logtrain_kernels import AttentionBackend as AttentionBackend  # job.py chooses, but does not know the kernels
from logtrain_kernels import (
    Llama3Scaling,
    add_rms_norm,
    attention,
    cached_attention,
    linear_cross_entropy,
    rope,
    rope_tables,
    swiglu,
)
from logtrain_kernels import Places as Places  # generate.py fills them
from logtrain_kernels import use_attention as use_attention

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    max_positions: int
    tied: bool
    """The head uses the embedding's matrix."""

    @property
    def num_parameters(self) -> int:
        heads = self.num_heads + self.num_kv_heads
        block = self.hidden_size * (2 * heads * self.head_dim + 3 * self.intermediate_size + 2)
        return self.num_layers * block + self.hidden_size * (1 + self.vocab_size * (1 if self.tied else 2))


class RMSNorm(nn.Module):
    """The scale of a norm. It is applied in `add_rms_norm`, together with the residual addition before it."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x_TD: Tensor, residual_TD: Tensor | None) -> tuple[Tensor, Tensor]:
        return add_rms_norm(x_TD, residual_TD, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        heads = self.num_heads + 2 * self.num_kv_heads
        self.qkv = nn.Linear(config.hidden_size, heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(
        self, x_TD: Tensor, tables: tuple[Tensor, Tensor], cu_seqlens: Tensor, max_seqlen: int, *cache
    ) -> Tensor:
        """`cache`: nothing, or this layer's keys and values and the places of the tokens in them."""
        qkv_TNH = self.qkv(x_TD).unflatten(-1, (-1, self.head_dim))
        q_TNH, k_TKH, v_TKH = rope(qkv_TNH, *tables, self.num_heads, self.num_kv_heads)
        attend = cached_attention if cache else attention
        return self.out(attend(q_TNH, k_TKH, v_TKH, cu_seqlens, max_seqlen, *cache).flatten(1))


class FeedForward(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x_TD)))


class Block(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.recompute: Recompute = "none"

    def forward(self, x_TD: Tensor, residual_TD: Tensor | None, *row) -> tuple[Tensor, Tensor]:
        """(last sublayer's output, residual stream before it) -> the same two, one block later; `row`: tables,
        cu_seqlens, max_seqlen, and what Attention takes of a cache.
        """
        if self.recompute == "none" or not torch.is_grad_enabled():
            return self.compute(x_TD, residual_TD, *row)
        contexts = {"context_fn": keep_products} if self.recompute == "selective" else {}
        return checkpoint(
            self.compute, x_TD, residual_TD, *row, use_reentrant=False, preserve_rng_state=False, **contexts
        )

    def compute(self, x_TD: Tensor, residual_TD: Tensor | None, *row) -> tuple[Tensor, Tensor]:
        residual_TD, normed_TD = self.attention_norm(x_TD, residual_TD)
        residual_TD, normed_TD = self.feed_forward_norm(self.attention(normed_TD, *row), residual_TD)
        return self.feed_forward(normed_TD), residual_TD


KEPT = {  # the matrix products, and attention as CPUs and GPUs run it
    "aten.mm.default",
    "aten.addmm.default",  # what a compiler makes of the next
    "aten.addmm_.default",  # adds to a kept product: a second time would add twice
    "logtrain.dropped_linear.default",
    "logtrain.adapter_outputs.default",
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
    "torch_attn._varlen_attn.default",
    "flash_attn._flash_attn_varlen_forward.default",
    "logtrain.rope_.default",  # works in place of a kept product: a second time would turn it twice
}


def keep_products():
    """Selective recomputation: matrix products and attention are kept, the elementwise work between them is done
    again.
    """
    return create_selective_checkpoint_contexts(
        lambda _, op, *args, **kwargs: (
            CheckpointPolicy.MUST_SAVE if str(op) in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
        ),
        allow_cache_entry_mutation=True,
    )


class LossHead(nn.Module):
    """The last norm, the head and its loss. It owns the head's matrix: under FSDP2 only its forward may read it."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, x_TD: Tensor, residual_TD: Tensor, labels_T: Tensor | None) -> Tensor:
        _, normed_TD = self.norm(x_TD, residual_TD)
        if labels_T is None:
            return normed_TD @ self.weight.T
        return linear_cross_entropy(normed_TD, self.weight, labels_T)


class Llama(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = LossHead(config)
        if config.tied:
            self.head.weight = self.embedding.weight
        self.keys: list[Tensor] = []  # of the tokens under way, for the adapters' dropout

    def forward(
        self,
        tokens_T: Tensor,
        labels_T: Tensor | None,
        positions_T: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        keys_T: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy summed over this batch's targets, fp32 scalar, in nats. With `labels_T = None`: the logits
        [T, V].

        tokens int64 [T], labels int64 [T] (-100: no target), positions int32 [T] within each document, cu_seqlens
        int32. keys int64 [T]: 64 random bits a token, for dropout.
        """
        self.keys[:] = [] if keys_T is None else [keys_T]
        tables = self.angles(positions_T)
        x_TD, residual_TD = self.embedding(tokens_T), None
        for block in self.blocks:
            x_TD, residual_TD = block(x_TD, residual_TD, tables, cu_seqlens, max_seqlen)
        return self.head(x_TD, residual_TD, labels_T)

    def next_logits(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        cache: Sequence[tuple[Tensor, Tensor]],
        places: Places,
    ) -> Tensor:
        """What follows the last token of each of S sequences that go on in a cache: logits [S, V]. Without gradients.

        The tokens are the new ones of all sequences, end to end as in `forward`; `cache`: every layer's keys and values
        [C, K, H], to which theirs are added at `places`.
        """
        tables = self.angles(positions_T)
        x_TD, residual_TD = self.embedding(tokens_T), None
        for block, (keys_CKH, values_CKH) in zip(self.blocks, cache, strict=True):
            x_TD, residual_TD = block(
                x_TD, residual_TD, tables, cu_seqlens, max_seqlen, keys_CKH, values_CKH, places
            )
        last_S = cu_seqlens[1:] - 1
        return self.head(x_TD[last_S], residual_TD[last_S], None)

    def angles(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        return rope_tables(positions_T, self.config.head_dim, self.config.rope_theta, self.config.rope_scaling)


class RandomWeights:
    """Initial values for training from scratch: normal with deviation 0.02, projections into the residual stream by 1
    / sqrt(2 L) less, norms 1.

    Each matrix is drawn from (seed, its name) alone: the same on any number of ranks.
    """

    def __init__(self, config: LlamaConfig, seed: int):
        with torch.device("meta"):
            self.shapes = {name: p.shape for name, p in Llama(config).named_parameters()}
        self.seed, self.residual_std = seed, 0.02 / (2 * config.num_layers) ** 0.5

    def rows(self, name: str, start: int, stop: int) -> tuple[Tensor]:
        shape = self.shapes[name]
        if len(shape) == 1:
            return (torch.ones(stop - start),)
        std = self.residual_std if name.endswith(("out.weight", "down.weight")) else 0.02
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        return (torch.empty(shape).normal_(0, std, generator=generator)[start:stop],)
