"""Traces one training step of a recipe at full size, run by the real code on pretended GPUs: `TrainStep` on the real
model under FSDP2, with recomputation, clipping and optimizer, on tensors without contents and a process group that
sends nothing. With `trainer.replay_kl` every micro-batch counts as one of a teacher's, which takes longest.

Micro-batches in the middle of a step are alike, so at most three run: the first, which creates gradients, one of the
middle, which adds to them, and the last, in which replicas average. `Trace.repeats` says how often each counts.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from logtrain.core.batch import Batch
from logtrain.core.world import compute_dtype
from logtrain.data.loader import Step
from logtrain.model.llama import Llama, LlamaConfig
from logtrain.model.weights import materialize
from logtrain.planning.memory import Peak, peak
from logtrain.planning.operation import Op
from logtrain.planning.recorder import Recorder
from logtrain.training.config import RunConfig
from logtrain.training.objective import objective_of
from logtrain.training.optim import make_optimizer
from logtrain.training.sharding import make_mesh, sharded_model
from logtrain.training.step import TrainStep
from logtrain_kernels import pretended_gpu

TOP_K = 16  # outcomes of a teacher's distribution in a plan; what they take is nothing beside the logits


@dataclass
class Trace:
    """The operations and the memory of one rank in a step."""

    ops: list[Op]
    """Operations in the order of their launch."""
    repeats: list[int]
    """How often each traced micro-batch counts; the update counts once."""
    tokens: int
    """Tokens of a micro-batch."""
    peak: Peak
    """The moment at which most memory is alive."""
    bytes_between_steps: int
    """Bytes that are alive when a step begins: weights and optimizer state."""
    syncs: list[str]
    """Operations that the host waited for, in words."""

    @property
    def accumulation(self) -> int:
        """Micro-batches of the whole step."""
        return sum(self.repeats)

    def count(self, op: Op) -> int:
        """How often an operation runs in the whole step."""
        return 1 if op.phase == "update" else self.repeats[op.micro_batch - 1]

    def total(self, value: Callable[[Op], float]) -> float:
        """Sum of value(op) over the whole step."""
        return sum(self.count(op) * value(op) for op in self.ops)


def repeats_of(accumulation: int) -> list[int]:
    """How often each traced micro-batch counts in a step of `accumulation` micro-batches."""
    return [1, accumulation - 2, 1] if accumulation > 2 else [1] * accumulation


@contextlib.contextmanager
def pretended_world(size: int) -> Iterator[None]:
    """Make this process rank 0 of `size` in a process group that sends nothing. Raises ValueError if it is in another
    one.
    """
    if dist.is_initialized():
        raise ValueError("a process group is there already: the plan needs one of its own")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of a device without contents
            yield
    finally:
        dist.destroy_process_group()


def trace_step(config: RunConfig, shape: LlamaConfig, gpus: int, on_gpu: bool = True) -> Trace:
    """Run a step of the recipe on `gpus` pretended GPUs; -> the trace of rank 0. It takes seconds for 8B parameters.

    `on_gpu`: False takes the operations that a CPU would run. Raises ValueError if the rows of a step, or the shard
    ranks, do not fit the number of GPUs, and with a torch before 2.13, whose fake tensors do not know all of a step.
    """
    if torch.__version__ < "2.13":
        raise ValueError(f"a plan needs torch >= 2.13, and this is {torch.__version__}; plan on a machine that has it")
    tokens, repeats = config.loader.seq_len * config.loader.rows_per_batch, repeats_of(config.loader.accumulation(gpus))
    recorder = Recorder(shape.vocab_size)
    with pretended_world(gpus), contextlib.ExitStack() as stack:
        mesh = make_mesh("cpu", gpus, config.parallel)
        model = sharded_model(config, shape, mesh, compute_dtype(torch.device("cuda"), config.compute_dtype))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        if on_gpu:
            stack.enter_context(pretended_gpu())
        train_step = ready_to_train(model, config, gpus)
        optimizer = train_step.optimizer
        recorder.categorize(list(model.parameters()), "weights")
        top_k = TOP_K if config.trainer.replay_kl else 0
        warm_up, step = (
            pretended_step(count, tokens, top_k, config.trains_on == "pairs") for count in (1, len(repeats))
        )
        with recorder:
            train_step(warm_up, 0)  # creates the optimizer's state
            recorder.categorize(optimizer.state, "optimizer")
            optimizer.register_step_pre_hook(
                lambda *_: recorder.categorize([p.grad for p in model.parameters()], "gradients")
            )
            first_op, bytes_between_steps = recorder.begin_step(), recorder.bytes_alive
            train_step(step, 0)
        return trace_of(recorder, first_op, repeats, tokens, bytes_between_steps)


def ready_to_train(model: Llama, config: RunConfig, gpus: int) -> TrainStep:
    """Give a model memory; -> the step that trains it as one rank of `gpus`."""
    device = torch.device("cpu")
    materialize(model, device, None)
    optimizer, world = make_optimizer(model, config.optim), PretendedWorld(device, gpus)
    return TrainStep(model, optimizer, config.optim, config.trainer.max_grad_norm, 1, world, objective_of(config))


@dataclass(frozen=True)
class PretendedWorld:
    """The facts of the ranks that a step needs, as a `StepWorld`."""

    device: torch.device
    """The device of this rank."""
    size: int
    """The number of ranks."""


def pretended_step(micro_batches: int, tokens: int, teacher_top_k: int = 0, pairs: bool = False) -> Step:
    """A step of batches without contents, with `tokens` tokens each, all of which have a teacher if `teacher_top_k`.
    `pairs`: whether they are of pairs of answers.
    """
    ids = torch.empty(tokens, dtype=torch.long, device="meta")
    positions = torch.empty(tokens, dtype=torch.int32, device="meta")
    cu_seqlens = torch.empty(tokens // 64 + 2, dtype=torch.int32, device="meta")
    batch = PretendedBatch(ids, ids, positions, cu_seqlens, max_seqlen=tokens, seeds_T=ids)
    if teacher_top_k:
        top = torch.empty(tokens, teacher_top_k, dtype=torch.int32, device="meta")
        batch = batch._replace(teacher_TK=top, teacher_log_TK=top.half())
    if pairs:
        of_pairs = torch.empty(tokens // 128 + 1, 3, dtype=torch.long, device="meta")
        batch = batch._replace(pairs_P3=of_pairs, reference_P2=of_pairs[:, :2].float())
    batches: list[Batch] = [batch] * micro_batches
    return Step(batches, tokens=tokens, targets=tokens, attention_pairs=0)


class PretendedBatch(Batch):
    """A batch in host memory, without contents."""

    def to(self, device: torch.device) -> Batch:
        """The batch with memory on a device; a copy from the host is no kernel, so none is recorded."""
        return self.map(lambda x: torch.empty_like(x, device=device))


def trace_of(recorder: Recorder, first_op: int, repeats: list[int], tokens: int, bytes_between_steps: int) -> Trace:
    """The trace of the step from operation `first_op` on; its operations wait only for one another."""
    found = peak(recorder.ops, recorder.memory, first_op)
    ops = recorder.ops[first_op:]
    for op in ops:
        op.waits = tuple(number - first_op for number in op.waits if number >= first_op)
    return Trace(ops, repeats, tokens, found, bytes_between_steps, recorder.syncs)
