"""The Llama decoder (Llama 2, 3, 3.1, 3.2): a batch of packed rows in, summed loss out.

Shapes in names: T tokens of the packed rows, D hidden size, F feed-forward size, N query heads, K key-value heads, H
head size, H2 half of it, C slots of a cache, V vocabulary.

The residual stream travels beside the last sublayer's output, not yet added: every norm is then one `add_rms_norm`.
The query, key and value projections are one matrix, gate and up another, so that a block runs four matrix products.
hf_layout.py knows the published names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

import logtrain_kernels
from logtrain.core.batch import IGNORE, Batch
from logtrain.model.config import Recompute
from logtrain.model.distillation import Taught, taught_cross_entropy
from logtrain.model.recompute import recomputed
from logtrain.model.sequence_losses import by_sequence, token_losses
from logtrain_kernels import (
    CacheSlots as CacheSlots,  # the generator fills them
)
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
from logtrain_kernels import use_attention as use_attention  # a run chooses it
from logtrain_kernels import use_best_attention as use_best_attention

assert IGNORE == logtrain_kernels.IGNORE, "the loader and the loss must mean the same label"


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a model, which its checkpoint fixes."""

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
        """The number of elements of all weights; a tied matrix counts once."""
        heads = self.num_heads + self.num_kv_heads
        block = self.hidden_size * (2 * heads * self.head_dim + 3 * self.intermediate_size + 2)
        return self.num_layers * block + self.hidden_size * (1 + self.vocab_size * (1 if self.tied else 2))


class LayerCache(NamedTuple):
    """The keys and values that one layer has kept of earlier tokens: [C, K, H] each."""

    keys_CKH: Tensor
    values_CKH: Tensor
    slots: CacheSlots
    """The slots that the new tokens go to."""


class Sequences(NamedTuple):
    """All that a layer must know of the tokens besides their activations."""

    rotations: tuple[Tensor, Tensor]
    """Cosines and sines of each token's angles, fp32 [T, H / 2] each."""
    cu_seqlens: Tensor
    """int32: where each sequence starts, then T, which may be repeated."""
    max_seqlen: int
    """A bound on the length of the longest sequence, in tokens."""
    cache: LayerCache | None = None
    """The keys and values of earlier tokens, or None where the sequences begin."""


class RMSNorm(nn.Module):
    """The residual addition and the norm after it: x and residual stream [T, D], None to start it -> (new residual, its
    norm).
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x_TD: Tensor, residual_TD: Tensor | None) -> tuple[Tensor, Tensor]:
        return add_rms_norm(x_TD, residual_TD, self.weight, self.eps)


class Attention(nn.Module):
    """Rotary causal self-attention with grouped query heads: [T, D] -> [T, D]."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        heads = self.num_heads + 2 * self.num_kv_heads
        self.qkv = nn.Linear(config.hidden_size, heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x_TD: Tensor, sequences: Sequences) -> Tensor:
        qkv_TNH = self.qkv(x_TD).unflatten(-1, (-1, self.head_dim))
        return self.out(self.attend(*rope(qkv_TNH, *sequences.rotations, *self.heads), sequences))

    @property
    def heads(self) -> tuple[int, int]:
        """The numbers of query heads, and of key-value heads."""
        return self.num_heads, self.num_kv_heads

    def attend(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, sequences: Sequences) -> Tensor:
        """What each token's query heads find: rotated queries and keys, and values -> [T, N H]."""
        cu_seqlens, longest = sequences.cu_seqlens, sequences.max_seqlen
        if cache := sequences.cache:
            keys_CKH, values_CKH = cache.keys_CKH, cache.values_CKH
            out_TNH = cached_attention(q_TNH, k_TKH, v_TKH, cu_seqlens, longest, keys_CKH, values_CKH, cache.slots)
        else:
            out_TNH = attention(q_TNH, k_TKH, v_TKH, cu_seqlens, longest)
        return out_TNH.flatten(1)


class FeedForward(nn.Module):
    """The gated feed-forward layer: [T, D] -> [T, D]."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x_TD)))


class Block(nn.Module):
    """Attention and feed-forward layer, a norm before each."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.recompute: Recompute = "none"

    def forward(self, x_TD: Tensor, residual_TD: Tensor | None, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """(last sublayer's output, residual stream before it) -> both one block later, all [T, D]."""
        return recomputed(self.recompute, self.compute, x_TD, residual_TD, sequences)

    def compute(self, x_TD: Tensor, residual_TD: Tensor | None, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Computes what `forward` returns, without recomputation."""
        sum_TD, normed_TD = self.attention_norm(x_TD, residual_TD)
        sum_TD, normed_TD = self.feed_forward_norm(self.attention(normed_TD, sequences), sum_TD)
        return self.feed_forward(normed_TD), sum_TD


class LossHead(nn.Module):
    """The last norm, the head and its loss. It owns the head's matrix: under FSDP2 only its forward may read it."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(
        self,
        x_TD: Tensor,
        residual_TD: Tensor,
        labels_T: Tensor | None,
        of_each_token: bool = False,
        taught: Taught | None = None,
    ) -> Tensor:
        """Returns the loss summed over the labels (fp32 scalar, in nats), or of each token (fp32 [T], 0 without a
        label), or the logits [T, V] where there are no labels; with a teacher what `taught_cross_entropy` gives.
        """
        _, normed_TD = self.norm(x_TD, residual_TD)
        if labels_T is None:
            return normed_TD @ self.weight.T
        if of_each_token:
            return token_losses(normed_TD, self.weight, labels_T)
        if taught is not None:
            return taught_cross_entropy(normed_TD, self.weight, labels_T, taught)
        return linear_cross_entropy(normed_TD, self.weight, labels_T)


class Llama(nn.Module):
    """A Llama model: a batch in, the summed loss of its targets or its logits out."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = LossHead(config)
        self.tie_head()
        self.seeds: list[Tensor] = []  # of the tokens under way, for the adapters' dropout; the adapters share the list

    def tie_head(self) -> None:
        """Lets the head use the embedding's matrix, if the model is a tied one."""
        if self.config.tied:
            weight = self.embedding.weight
            assert isinstance(weight, nn.Parameter)
            self.head.weight = weight

    def forward(
        self, batch: Batch, end_id: int | None = None, of_sequences: bool = False, teacher_share: float = 0.0
    ) -> Tensor:
        """Cross-entropy summed over the batch's targets: fp32 scalar, in nats. Without labels: the logits [T, V].

        `end_id`: fp32 [3] instead: that sum, the number of targets that are this id, and of how many of these it is the
        most likely one. `of_sequences`: fp32 [S] instead, the sum of each sequence of the batch. `teacher_share`: fp32
        [3] instead, of a batch with a teacher, as `taught_cross_entropy` gives it.
        """
        self.seeds[:] = [] if batch.seeds_T is None else [batch.seeds_T]
        x_TD, residual_TD = self.decode(batch)
        if of_sequences:
            return by_sequence(self.head(x_TD, residual_TD, batch.labels_T, True), batch.cu_seqlens)
        if teacher_share:
            assert batch.teacher_TK is not None and batch.teacher_log_TK is not None
            taught = Taught(batch.teacher_TK, batch.teacher_log_TK, teacher_share)
            return self.head(x_TD, residual_TD, batch.labels_T, taught=taught)
        summed = self.head(x_TD, residual_TD, batch.labels_T)
        if end_id is None or batch.labels_T is None:
            return summed
        ends_E = (batch.labels_T == end_id).nonzero()[:, 0]
        likeliest_E = self.head(x_TD[ends_E], residual_TD[ends_E], None).argmax(-1)
        counts = torch.stack((torch.ones_like(ends_E).sum(), (likeliest_E == end_id).sum()))
        return torch.cat((summed[None], counts.to(summed.dtype)))

    def decode(self, batch: Batch, cache: Sequence[LayerCache] = ()) -> tuple[Tensor, Tensor]:
        """The batch through the embedding and all blocks: (last sublayer's output, residual stream before it), both [T,
        D]. `cache`: every layer's, or none.
        """
        sequences = Sequences(self.rotations(batch.positions_T), batch.cu_seqlens, batch.max_seqlen)
        x_TD, residual_TD = self.embedding(batch.tokens_T), None
        for i, block in enumerate(self.blocks):
            x_TD, residual_TD = block(x_TD, residual_TD, sequences._replace(cache=cache[i]) if cache else sequences)
        assert residual_TD is not None, "a model without blocks"
        return x_TD, residual_TD

    def rotations(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the cosines and sines of every token's rotary angles, fp32 [T, H / 2] each."""
        return rope_tables(positions_T, self.config.head_dim, self.config.rope_theta, self.config.rope_scaling)
