"""Other systems' training steps, recorded by the planner's recorder, each in the configuration that its figures were
published for.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Literal
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts, noop_context_fn

from benchmarks.fusion import fuse
from benchmarks.peer_models import PeerModel
from logtrain.planning.operation import Op
from logtrain.planning.recorder import Recorder
from logtrain.planning.trace import Trace, pretended_world, repeats_of, trace_of
from logtrain_kernels import pretended_gpu

HEAD = import_module("logtrain_kernels.linear_cross_entropy")  # the package has a function of this name


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a system trains."""

    model: Callable[[], PeerModel]
    rows: int
    """of a micro-batch, on each GPU"""
    seq_len: int
    """tokens of a row"""
    accumulation: int
    """micro-batches of a step"""
    gpus: int = 8
    recompute: Literal["none", "full", "every second product"] = "none"
    fusion: Literal["none", "compile", "liger"] = "none"
    """who fuses elementwise operations"""
    reduce_dtype: torch.dtype = torch.float32
    """of gradients, where the weights are sharded"""
    sharded: bool = True
    """by FSDP2; else the optimizer alone is distributed"""
    vocab_size: int = 128_256
    head_chunk: int = 2**30
    """bytes of logits at a time, where the head is fused"""


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
    """Whether an operation adds to the residual stream, which Liger's kernels leave to PyTorch."""
    return op.name == "add" and len(op.inputs) == 2 and op.inputs[0][1] == op.inputs[1][1] == op.outputs[0][1]


def trace_peer(setting: Setting) -> Trace:
    """Run a step of a system on pretended GPUs; -> everything rank 0 executes."""
    repeats = repeats_of(setting.accumulation)
    with pretended_world(setting.gpus), contextlib.ExitStack() as stack:
        mesh = init_device_mesh("cpu", (setting.gpus,), mesh_dim_names=("shard",))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(pretended_gpu())
        stack.enter_context(patch.object(HEAD, "CHUNK_BYTES", setting.head_chunk))
        model = make_model(setting)
        recompute(model, setting)
        if setting.sharded:
            shard(model, mesh, setting)
        peer = Peer(setting, model)
        with peer.recorder:
            peer.step(1)  # creates the optimizer's state
            peer.recorder.categorize(peer.optimizer.state, "optimizer")
            first_op = peer.recorder.begin_step()
            peer.step(len(repeats))
        if setting.fusion == "compile":
            fuse(peer.recorder, "compiled")
        if setting.fusion == "liger":
            fuse(peer.recorder, "liger", residual_addition)
        return trace_of(peer.recorder, first_op, repeats, setting.rows * setting.seq_len, 0)


def make_model(setting: Setting) -> PeerModel:
    """The system's model: without memory and in fp32 where it is to be sharded, else in bfloat16."""
    dtype, device = (torch.float32, "meta") if setting.sharded else (torch.bfloat16, "cpu")
    with default_dtype(dtype), torch.device(device):
        return setting.model()


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let new parameters have `dtype`, and fp32 again afterwards."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def recompute(model: PeerModel, setting: Setting) -> None:
    """Wrap the blocks, if the system recomputes anything of them."""
    if setting.recompute == "none":
        return
    context = noop_context_fn if setting.recompute == "full" else every_second_product
    for i, block in enumerate(model.blocks):
        model.blocks[i] = checkpoint_wrapper(block, preserve_rng_state=False, context_fn=context)


def shard(model: PeerModel, mesh: DeviceMesh, setting: Setting) -> None:
    """FSDP2 on every block and on the rest, then memory for the shards."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=setting.reduce_dtype)
    for i, block in enumerate(model.blocks):
        last = i == len(model.blocks) - 1
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=not last)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to_empty(device="cpu")


class Peer:
    """A system that trains: with FSDP2, or else with a distributed optimizer, whose shards of fp32 weights come to the
    GPUs as whole bf16 ones after every update.
    """

    def __init__(self, setting: Setting, model: PeerModel):
        self.setting, self.model, self.recorder = setting, model, Recorder(setting.vocab_size)
        trained = [p for p in model.parameters() if p.requires_grad]
        share = sum(p.numel() for p in trained) // setting.gpus
        self.masters = trained if setting.sharded else [nn.Parameter(torch.empty(share))]
        self.optimizer = torch.optim.AdamW(self.masters, fused=True)
        self.recorder.categorize(list(model.parameters()), "weights")
        self.ids_BS = torch.empty(setting.rows, setting.seq_len, dtype=torch.long)

    def step(self, num_micro_batches: int) -> None:
        """Train: forward and backward of so many micro-batches, and one update."""
        for _ in range(num_micro_batches):
            self.enter("forward")
            loss = self.model(self.ids_BS)
            self.enter("backward")
            loss.backward()
        self.recorder.phase = "update"
        if not self.setting.sharded:
            self.scatter_gradients()
        nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.recorder.categorize([p.grad for p in self.masters], "gradients")
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.setting.sharded:
            self.gather_weights()

    def enter(self, phase: Literal["forward", "backward"]) -> None:
        """Tell the recorder which phase of a micro-batch begins, where FSDP2 does not."""
        if not self.setting.sharded:
            self.recorder.phase = phase
            self.recorder.micro_batch += phase == "forward"

    def scatter_gradients(self) -> None:
        """Reduce-scatter fp32 gradients to the masters."""
        master = self.masters[0]
        master.grad = torch.empty_like(master)
        dist.reduce_scatter_tensor(master.grad, torch.empty(len(master) * self.setting.gpus), group=dist.group.WORLD)

    def gather_weights(self) -> None:
        """All-gather bf16 weights from the masters, and drop the model's gradients."""
        shard = torch.empty(len(self.masters[0]), dtype=torch.bfloat16)
        whole = torch.empty(len(shard) * self.setting.gpus, dtype=torch.bfloat16)
        dist.all_gather_into_tensor(whole, shard, group=dist.group.WORLD)
        for p in self.model.parameters():
            p.grad = None
