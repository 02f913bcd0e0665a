"""The ranks of a run, and how the model lies on them.

Under torchrun each process is a rank; without it the process is a world of one and everything below is the same.
FSDP2 shards every parameter by rows over the ranks of a replica; with fewer shard ranks than ranks (HSDP) the
replicas average their gradients.
"""

import functools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from logtrain.model.llama import Llama, LlamaConfig

Rows = Callable[[str, int, int], Iterable[Tensor]]
"""Where weights come from: rows(name, start, stop) yields rows [start, stop) of a parameter, piece by piece."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    shard_ranks: int = 0
    """Ranks that share one copy of the model. 0: all of them (FSDP). Fewer: that many a copy, and the copies average
    gradients (HSDP).
    """
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which gradients are summed over ranks."""
    reshard_after_forward: bool = True
    """Free a block's gathered weights after its forward and gather them again in the backward."""
    prefetch: int = 1
    """Blocks whose weights are gathered ahead of the one that computes, in the forward and in the backward. 0: as FSDP2
    does by itself, which is one, asked for later by the host.
    """
    symmetric_memory: bool = False
    """Gather weights through NCCL's symmetric memory: within a node by the copy engines of the GPUs, which leaves their
    processors to the matrix products.
    """

    def __post_init__(self):
        if self.prefetch < 0:
            raise ValueError(f"parallel.prefetch = {self.prefetch} must not be negative")


class World:
    """This process among all: rank, size, device, and a host-side group for what must not wait for the GPU."""

    def __init__(self, symmetric_memory: bool = False, on_cpu: bool = False):
        """`on_cpu`: leave the GPU alone."""
        launched = "RANK" in os.environ
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        on_cuda = torch.cuda.is_available() and not on_cpu
        if on_cuda and self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"local rank {self.local_rank} has no GPU: {torch.cuda.device_count()} found; lower --nproc_per_node"
            )
        self.device = torch.device("cuda", self.local_rank) if on_cuda else torch.device("cpu")
        if on_cuda:
            torch.cuda.set_device(self.device)
        if symmetric_memory:
            if not on_cuda:
                raise ValueError("parallel.symmetric_memory: only for GPUs, and none was found; set it to false")
            os.environ.setdefault("NCCL_CTA_POLICY", "2")  # no processor takes part in what a copy engine can do
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
            device_id=self.device if on_cuda else None,
            **({} if launched else {"store": dist.HashStore(), "rank": 0, "world_size": 1}),
        )
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.is_main = self.rank == 0
        self.control = dist.new_group(backend="gloo", timeout=timedelta(hours=4))  # rank 0 may write to a slow disk

    def mesh(self, config: ParallelConfig) -> DeviceMesh:
        """One axis "shard", or two ("replica", "shard") for HSDP."""
        shard = config.shard_ranks or self.size
        if shard < 1 or self.size % shard:
            raise ValueError(f"parallel.shard_ranks = {shard} does not divide the {self.size} ranks")
        if shard == self.size:
            return init_device_mesh(self.device.type, (self.size,), mesh_dim_names=("shard",))
        return init_device_mesh(self.device.type, (self.size // shard, shard), mesh_dim_names=("replica", "shard"))

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place; on cuda without waiting for it."""
        dist.all_reduce(values)
        return values

    def from_main(self, value: object) -> object:
        """Rank 0's value on every rank (host side; tensors do not belong here)."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control, device=torch.device("cpu"))
        return box[0]

    def wait_for_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        """Leave together: when one process has ended with a status other than 0, torchrun ends the others."""
        dist.barrier(self.control)
        dist.destroy_process_group()


class StopSignal:
    """SIGTERM or Ctrl-C on any rank, agreed on by all: every rank sees `requested()` turn true after the same step.

    Agreement costs one host-side all-reduce of a byte a step; it is started a step ahead, so nobody waits for it. A
    second Ctrl-C, a second or more later, stops at once.
    """

    def __init__(self, world: World):
        self.world, self.flag, self.first = world, 0, 0.0
        self.pending: tuple[Tensor, dist.Work] | None = None
        self.before = {number: signal.signal(number, self.catch) for number in (signal.SIGTERM, signal.SIGINT)}

    def catch(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT and self.flag and time.monotonic() - self.first > 1:
            os._exit(130)  # an exception would wait for the save under way
        self.flag, self.first = 1, self.first or time.monotonic()

    def requested(self, also: bool = False) -> bool:
        """`also`: this rank has a reason of its own to stop."""
        agreed = self.settle()
        flag = torch.tensor([self.flag or also], dtype=torch.uint8)
        self.pending = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.world.control, async_op=True)
        return agreed

    def settle(self) -> bool:
        if self.pending is None:
            return False
        flag, work = self.pending
        work.wait()
        self.pending = None
        return bool(flag)

    def close(self) -> None:
        self.settle()
        for number, handler in self.before.items():
            signal.signal(number, handler)


# ---- the model on the ranks


def shard(model: Llama, mesh: DeviceMesh, config: ParallelConfig, compute_dtype: torch.dtype) -> None:
    """FSDP2 on every block, the embedding and the head; a matrix they share (tied) stays with the root.

    Master weights, gradients and optimizer state are fp32 shards; gathered weights and activations have
    `compute_dtype`. Where every rank holds a whole copy, frozen weights need nothing and stay as they are.
    """
    frozen = {p for p in model.parameters() if not p.requires_grad}
    kept_out = frozen if mesh["shard"].size() == 1 else set()
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype,
        reduce_dtype=getattr(torch, config.reduce_dtype),
        cast_forward_inputs=False,  # the rotary tables stay fp32
    )
    reshard = config.reshard_after_forward and not kept_out  # adapters alone are small, and cast again each time
    place = functools.partial(fully_shard, mesh=mesh, mp_policy=policy, ignored_params=kept_out)
    for block in model.blocks:
        last = block is model.blocks[-1]  # its backward comes next: freed, it would be gathered again at once
        place(block, reshard_after_forward=reshard and not last)
    if not model.config.tied:
        place(model.embedding, reshard_after_forward=reshard)
        model.embedding.set_unshard_in_backward(False)  # its backward reads only which rows were looked up
        place(model.head, reshard_after_forward=False)  # its backward comes next
    place(model, reshard_after_forward=False)
    for i, block in enumerate(model.blocks):
        block.set_modules_to_forward_prefetch(list(model.blocks[i + 1 : i + 1 + config.prefetch]))
        block.set_modules_to_backward_prefetch(list(model.blocks[max(0, i - config.prefetch) : i])[::-1])
    if config.symmetric_memory:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_symm_mem_for_comm()


def build(
    config: LlamaConfig,
    mesh: DeviceMesh,
    parallel: ParallelConfig,
    compute_dtype: torch.dtype,
    rows: Rows | None,
    adapt: Callable[[Llama], None] | None = None,
) -> Llama:
    """A sharded model on the mesh's device, filled from `rows` (None: whatever the memory held; a checkpoint comes
    next). `adapt`: what is done to the meta model before.
    """
    with torch.device("meta"):
        model = Llama(config)
    if adapt:
        adapt(model)
    shard(model, mesh, parallel, compute_dtype)
    materialize(model, torch.device(mesh.device_type), rows)
    return model


def materialize(model: Llama, device: torch.device, rows: Rows | None) -> None:
    """Give a meta model memory for this rank's shards, filled with `rows(name, start, stop)`: exactly the rows it
    owns, piece by piece.
    """
    model.to_empty(device=device)
    if model.config.tied:
        model.head.weight = model.embedding.weight  # to_empty gives each its own memory
    if rows is None:
        return
    for name, parameter in model.named_parameters():
        start, local = local_rows(parameter)
        filled = 0
        for piece in rows(name, start, start + len(local)) if len(local) else ():
            with torch.no_grad():
                local[filled : filled + len(piece)].copy_(piece)
            filled += len(piece)
        assert filled == len(local), f"{name}: {filled} of {len(local)} rows filled"


def local_rows(parameter: Tensor) -> tuple[int, Tensor]:
    """(first row, this rank's rows) of a parameter, sharded or not."""
    if not isinstance(parameter, DTensor):
        return 0, parameter.detach()
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return offset[0], parameter.to_local().detach()


def full_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter whole, one after the other; gathering needs every rank to walk through it."""
    for name, parameter in model.named_parameters():
        yield name, parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


def last_micro_batch(model: nn.Module, last: bool) -> None:
    """Gradients are reduce-scattered after every micro-batch (whole they would take 4 bytes a parameter) and averaged
    over replicas after the last.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(last)


def clip_grad_norm(model: nn.Module, max_norm: float) -> Tensor:
    """Scale gradients to a global L2 norm of at most `max_norm` (0: none); -> the norm before, a device scalar."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def reshard(model: nn.Module) -> None:
    """Free weights that a forward without a backward left gathered; parameters are the fp32 shards again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
