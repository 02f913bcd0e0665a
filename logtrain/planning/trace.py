"""One training step of a recipe at full size, run by the real code on pretended GPUs: `TrainStep` on the real
model under FSDP2, its recomputation, clipping and optimizer, on tensors without contents and a process group that
sends nothing.

Micro-batches in the middle of a step are alike, so at most three run: the first (gradients appear), one in the middle
(they are added to) and the last (replicas average); `Trace.repeats` says how often each counts.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from logtrain.core.batch import Batch
from logtrain.core.world import compute_dtype
from logtrain.data.loader import Step
from logtrain.model.llama import LlamaConfig
from logtrain.model.weights import materialize
from logtrain.planning.memory import Peak, peak
from logtrain.planning.operation import Op
from logtrain.planning.recorder import Recorder
from logtrain.training.config import RunConfig
from logtrain.training.optim import make_optimizer
from logtrain.training.sharding import make_mesh, sharded_model
from logtrain.training.step import TrainStep
from logtrain_kernels import pretended_gpu


@dataclass
class Trace:
    """What one rank executes in a step of `accumulation` micro-batches."""

    ops: list[Op]
    repeats: list[int]  # of each traced micro-batch; the update counts once
    tokens: int  # of a micro-batch
    accumulation: int
    peak: Peak
    held: int  # bytes alive between steps: weights and optimizer state
    syncs: list[str]

    def count(self, op: Op) -> int:
        return 1 if op.phase == "update" else self.repeats[op.micro_batch - 1]

    def total(self, value) -> float:
        """Sum of value(op) over a whole step."""
        return sum(self.count(op) * value(op) for op in self.ops)


@contextlib.contextmanager
def pretended_world(size: int) -> Iterator[None]:
    """This process as rank 0 of `size`, in a group that sends nothing."""
    if dist.is_initialized():
        raise ValueError("a process group is there already: the plan needs one of its own")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a device without contents
            yield
    finally:
        dist.destroy_process_group()


def trace_step(config: RunConfig, llama: LlamaConfig, gpus: int, on_gpu: bool = True) -> Trace:
    """Run a step of the recipe on `gpus` pretended GPUs; -> everything rank 0 executes. Takes seconds for 8B.
    `on_gpu = False`: with the operations that a CPU would run.
    """
    loader, accumulation = config.loader, config.loader.accumulation(gpus)
    tokens, traced = loader.seq_len * loader.rows_per_batch, min(accumulation, 3)
    dtype = compute_dtype(torch.device("cuda"), config.dtype)
    recorder = Recorder(llama.vocab_size)
    with pretended_world(gpus), contextlib.ExitStack() as stack:
        model = sharded_model(config, llama, make_mesh("cpu", gpus, config.parallel), dtype)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        if on_gpu:
            stack.enter_context(pretended_gpu())
        materialize(model, torch.device("cpu"), None)
        for block in model.blocks:
            block.recompute = config.recompute
        optimizer = make_optimizer(model, config.optim)
        world = SimpleNamespace(device=torch.device("cpu"), size=gpus)
        train_step = TrainStep(model, optimizer, config.optim, config.trainer.max_grad_norm, 1, world)
        recorder.own(list(model.parameters()), "weights")
        with recorder:
            train_step(pretended_step(1, tokens), 0)  # creates the optimizer's state
            recorder.own(optimizer.state, "optimizer")
            begin, recorder.phase, recorder.micro_batch = len(recorder.ops), "forward", 0
            held = recorder.live
            step = pretended_step(traced, tokens)
            train_step.optimizer = GradientsSeen(optimizer, recorder, model)
            train_step(step, 0)
        found = peak(recorder.ops, recorder.memory, begin)
    repeats = [1, accumulation - 2, 1] if traced == 3 else [1] * traced
    ops = renumbered(recorder.ops, begin)
    return Trace(ops, repeats, tokens, accumulation, found, held, recorder.syncs)


class GradientsSeen:
    """The optimizer; before its step it tells the recorder which memory the gradients have."""

    def __init__(self, optimizer: torch.optim.Optimizer, recorder: Recorder, model: torch.nn.Module):
        self.optimizer, self.recorder, self.model = optimizer, recorder, model
        self.param_groups, self.zero_grad = optimizer.param_groups, optimizer.zero_grad

    def step(self) -> None:
        self.recorder.own([p.grad for p in self.model.parameters()], "gradients")
        self.optimizer.step()


def pretended_step(micro_batches: int, tokens: int) -> Step:
    """A step whose batches come into being, without contents, when the model takes them."""
    batches = [PretendedBatch(tokens) for _ in range(micro_batches)]
    return Step(batches, tokens=tokens, targets=tokens, attention_pairs=0)


class PretendedBatch:
    """Stands in for a Batch in host memory."""

    def __init__(self, tokens: int):
        self.tokens = tokens

    def to(self, device: torch.device) -> Batch:
        ids = torch.empty(self.tokens, dtype=torch.long, device=device)
        labels, positions = torch.empty_like(ids), torch.empty(self.tokens, dtype=torch.int32, device=device)
        cu_seqlens = torch.empty(self.tokens // 64 + 2, dtype=torch.int32, device=device)
        return Batch(ids, labels, positions, cu_seqlens, self.tokens, torch.empty_like(ids))


def renumbered(ops: list[Op], begin: int) -> list[Op]:
    """Operations from `begin` on, waiting only for one another."""
    kept = ops[begin:]
    for op in kept:
        op.waits = tuple(number - begin for number in op.waits if number >= begin)
    return kept
