"""Models of other systems, and our Llama where a system's fused kernels do what ours do. Called with token ids
[rows, seq_len] they return the loss, a scalar.

Shapes in names: B rows, S tokens of a row, T tokens of all rows, D hidden size, N heads, H head size.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from logtrain.core.batch import Batch
from logtrain.model.llama import Block, Llama
from logtrain.model.llama import LlamaConfig as Shape
from logtrain.planning.shape import read_shape
from logtrain_kernels import linear_cross_entropy

LLAMA_8B = read_shape("Llama-3.1-8B")
LLAMA_7B = replace(LLAMA_8B, num_kv_heads=32, intermediate_size=11_008)  # Llama 2's shape, 3's words


class TransformersLlama(nn.Module):
    """transformers' Llama, by default Llama-3.1-8B, with its own loss: logits whole, cross-entropy in fp32."""

    def __init__(self, shape: Shape = LLAMA_8B, fused_head: bool = False):
        super().__init__()
        config = LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            max_position_embeddings=131_072,
            use_cache=False,
            tie_word_embeddings=shape.tied,
            attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]  # the base class takes it
        )
        whole = LlamaForCausalLM(config)
        self.body, self.blocks = whole.model, whole.model.layers
        self.head = FusedHead(shape.vocab_size, shape.hidden_size) if fused_head else whole.lm_head

    def forward(self, ids_BS: Tensor) -> Tensor:
        x_BSD = self.body(input_ids=ids_BS).last_hidden_state
        if isinstance(self.head, FusedHead):
            return self.head(x_BSD.flatten(0, 1), ids_BS.flatten())
        return F.cross_entropy(self.head(x_BSD).flatten(0, 1).float(), ids_BS.flatten())


class FusedHead(nn.Module):
    """A head that returns the loss, and never has all logits."""

    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, x_TD: Tensor, labels_T: Tensor) -> Tensor:
        return linear_cross_entropy(x_TD, self.weight, labels_T)


class MptBlock(nn.Module):
    """A block of llm-foundry: LayerNorm, attention with one projection for q, k and v, four-fold GELU; no biases."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = (nn.LayerNorm(hidden, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.up, self.down = nn.Linear(hidden, 4 * hidden, bias=False), nn.Linear(4 * hidden, hidden, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_1(x_BSD)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        q_BNSH, k_BNSH, v_BNSH = qkv.unbind(2)
        attended = F.scaled_dot_product_attention(q_BNSH, k_BNSH, v_BNSH, is_causal=True)
        x_BSD = x_BSD + self.out(attended.transpose(1, 2).flatten(2))
        return x_BSD + self.down(F.gelu(self.up(self.norm_2(x_BSD))))


class Mpt(nn.Module):
    """MPT: the embedding is tied, the loss the fused cross-entropy of flash-attn."""

    VOCABULARY = 50_368

    def __init__(self, hidden: int, heads: int, layers: int):
        super().__init__()
        self.embedding = nn.Embedding(self.VOCABULARY, hidden)
        self.blocks = nn.ModuleList(MptBlock(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden, bias=False)

    def forward(self, ids_BS: Tensor) -> Tensor:
        x_BSD = self.embedding(ids_BS)
        for block in self.blocks:
            x_BSD = block(x_BSD)
        return linear_cross_entropy(self.norm(x_BSD).flatten(0, 1), self.embedding.weight, ids_BS.flatten())


class FusedLlama(Llama):
    """Our Llama in place of a system whose kernels are fused as ours (Transformer Engine)."""

    def __init__(self, lora_rank: int = 0):
        super().__init__(LLAMA_8B)
        if lora_rank:
            self.requires_grad_(False)
            for block in self.blocks:
                assert isinstance(block, Block)
                for layer, names in ((block.attention, ("qkv", "out")), (block.feed_forward, ("gate_up", "down"))):
                    for name in names:
                        setattr(layer, name, Lora(getattr(layer, name), lora_rank))

    def forward(self, ids_BS: Tensor) -> Tensor:
        ids_T = ids_BS.flatten()
        cu_seqlens = torch.empty(9, dtype=torch.int32)
        return super().forward(Batch(ids_T, ids_T, ids_T.int(), cu_seqlens, max_seqlen=ids_BS.shape[1]))


class Lora(nn.Module):
    """An adapter beside a frozen projection, as two linear layers."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


PeerModel = TransformersLlama | Mpt | FusedLlama
