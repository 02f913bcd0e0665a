"""Other systems' training steps, recorded by the same recorder: transformers' own Llama, MPT, and our Llama where a
system's fused kernels do what ours do. Each in the configuration that its figures were published for.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.fusion import fuse
from logtrain.model.llama import Llama
from logtrain.planning.memory import peak
from logtrain.planning.operation import Op
from logtrain.planning.prediction import read_shape
from logtrain.planning.recorder import Recorder
from logtrain.planning.trace import Trace, pretended_world, renumbered
from logtrain_kernels import linear_cross_entropy, pretended_gpu

HEAD = import_module("logtrain_kernels.linear_cross_entropy")  # the package has a function of this name
Fusion = Literal["none", "compile", "liger"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a system trains. `rows` x `seq_len` tokens in a micro-batch on each of `gpus`."""

    model: Callable[[], nn.Module]
    rows: int
    seq_len: int
    accumulation: int
    gpus: int = 8
    recompute: Literal["none", "full", "every second product"] = "none"
    fusion: Fusion = "none"
    reduce_dtype: torch.dtype = torch.float32
    sharded: bool = True
    vocab_size: int = 128_256
    head_chunk: int = 2**30  # bytes of logits at a time, where the head is fused


# ---- models: called with ids [rows, seq_len], they return the loss


class TransformersLlama(nn.Module):
    """transformers' Llama-3.1-8B with its own loss: logits whole, cross-entropy in fp32."""

    def __init__(self, fused_head: bool = False):
        super().__init__()
        shape = read_shape("Llama-3.1-8B")
        config = LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            max_position_embeddings=131_072,
            use_cache=False,
            attn_implementation="sdpa",
        )
        whole = LlamaForCausalLM(config)
        self.body, self.head = (
            whole.model,
            FusedHead(shape.vocab_size, shape.hidden_size) if fused_head else whole.lm_head,
        )
        self.blocks, self.fused_head = self.body.layers, fused_head

    def forward(self, ids_BS: Tensor) -> Tensor:
        x_BSD = self.body(input_ids=ids_BS).last_hidden_state
        if self.fused_head:
            return self.head(x_BSD.flatten(0, 1), ids_BS.flatten())
        return F.cross_entropy(self.head(x_BSD).flatten(0, 1).float(), ids_BS.flatten())


class FusedHead(nn.Module):
    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, x_TD: Tensor, labels_T: Tensor) -> Tensor:
        return linear_cross_entropy(x_TD, self.weight, labels_T)


class MptBlock(nn.Module):
    """llm-foundry's: LayerNorm, attention with one projection for q, k and v, four-fold GELU; no biases."""

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
    """Tied embedding, as in MPT; its loss by the fused cross-entropy of flash-attn."""

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
        super().__init__(read_shape("Llama-3.1-8B"))
        if lora_rank:
            self.requires_grad_(False)
            for block in self.blocks:
                for layer, name in (
                    *((block.attention, name) for name in ("qkv", "out")),
                    *((block.feed_forward, name) for name in ("gate_up", "down")),
                ):
                    setattr(layer, name, Lora(getattr(layer, name), lora_rank))

    def forward(self, ids_BS: Tensor) -> Tensor:
        ids = ids_BS.flatten()
        return super().forward(ids, ids, ids.int(), torch.empty(9, dtype=torch.int32), ids_BS.shape[1])


class Lora(nn.Module):
    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


# ---- a step of one


def every_second_product():
    """torchtitan's selective activation checkpointing "op": attention and every second matrix product are kept."""
    seen = {True: 0, False: 0}

    def policy(ctx, op, *_args, **_kwargs):
        if op == torch.ops.aten.mm.default:
            seen[ctx.is_recompute] += 1
            kept = seen[ctx.is_recompute] % 2 == 1
        else:
            kept = "attention" in str(op)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def residual_addition(op: Op) -> bool:
    """Liger's kernels leave it to PyTorch."""
    return op.name == "add" and len(op.inputs) == 2 and op.inputs[0][1] == op.inputs[1][1] == op.outputs[0][1]


def trace_peer(setting: Setting) -> Trace:
    recorder, tokens = Recorder(setting.vocab_size), setting.rows * setting.seq_len
    with pretended_world(setting.gpus), contextlib.ExitStack() as stack:
        mesh = init_device_mesh("cpu", (setting.gpus,), mesh_dim_names=("shard",))
        for context in (
            FakeTensorMode(allow_non_fake_inputs=True),
            pretended_gpu(),
            patch.object(HEAD, "CHUNK_BYTES", setting.head_chunk),
        ):
            stack.enter_context(context)
        torch.set_default_dtype(torch.float32 if setting.sharded else torch.bfloat16)
        stack.callback(torch.set_default_dtype, torch.float32)
        with torch.device("meta" if setting.sharded else "cpu"):
            model = setting.model()
        torch.set_default_dtype(torch.float32)
        recomputed = setting.recompute != "none"
        options = {} if setting.recompute == "full" else {"context_fn": every_second_product}
        for i, block in enumerate(model.blocks):
            if recomputed:
                model.blocks[i] = checkpoint_wrapper(block, preserve_rng_state=False, **options)
        if setting.sharded:
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=setting.reduce_dtype)
            for i, block in enumerate(model.blocks):
                last = i == len(model.blocks) - 1
                fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=not last)
            fully_shard(model, mesh=mesh, mp_policy=policy)
            model.to_empty(device="cpu")
        trained = [p for p in model.parameters() if p.requires_grad]
        masters = trained if setting.sharded else sharded_masters(trained, setting.gpus)
        optimizer = torch.optim.AdamW(masters, fused=True)
        recorder.own(list(model.parameters()), "weights")
        ids = torch.empty(setting.rows, setting.seq_len, dtype=torch.long)
        with recorder:
            step(setting, recorder, model, masters, optimizer, ids, 1)
            recorder.own(optimizer.state, "optimizer")
            begin, recorder.micro_batch, recorder.phase = len(recorder.ops), 0, "forward"
            traced = min(setting.accumulation, 3)
            step(setting, recorder, model, masters, optimizer, ids, traced)
        if setting.fusion == "compile":
            fuse(recorder, "compiled")
        if setting.fusion == "liger":
            fuse(recorder, "liger", residual_addition)
        found = peak(recorder.ops, recorder.memory, begin)
    repeats = [1, setting.accumulation - 2, 1] if traced == 3 else [1] * traced
    return Trace(renumbered(recorder.ops, begin), repeats, tokens, setting.accumulation, found, 0, recorder.syncs)


def sharded_masters(parameters: list[Tensor], gpus: int) -> list[nn.Parameter]:
    """A distributed optimizer's share of the fp32 weights."""
    return [nn.Parameter(torch.empty(sum(p.numel() for p in parameters) // gpus))]


def step(setting: Setting, recorder, model, masters, optimizer, ids, micro_batches: int) -> None:
    for _ in range(micro_batches):
        if not setting.sharded:  # FSDP2 says it otherwise
            recorder.phase, recorder.micro_batch = "forward", recorder.micro_batch + 1
        loss = model(ids)
        if not setting.sharded:
            recorder.phase = "backward"
        loss.backward()
    recorder.phase = "update"
    if not setting.sharded:  # reduce-scatter of fp32 gradients, all-gather of bf16 weights
        group = torch.distributed.group.WORLD
        masters[0].grad = torch.empty_like(masters[0])
        torch.distributed.reduce_scatter_tensor(
            masters[0].grad, torch.empty(len(masters[0]) * setting.gpus), group=group
        )
    nn.utils.clip_grad_norm_(masters, 1.0)
    recorder.own([p.grad for p in masters], "gradients")
    optimizer.step()
    optimizer.zero_grad()
    if not setting.sharded:
        shard = torch.empty(len(masters[0]), dtype=torch.bfloat16)
        whole = torch.empty(len(shard) * setting.gpus, dtype=torch.bfloat16)
        torch.distributed.all_gather_into_tensor(whole, shard, group=torch.distributed.group.WORLD)
        for p in model.parameters():
            p.grad = None
