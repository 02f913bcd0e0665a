"""The ranks of a run. Under torchrun each process is a rank; without torchrun the process is a world of one rank, to
which everything here applies as well.
"""

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore
from torch.distributed.distributed_c10d import _get_default_store

from logtrain.core import still
from logtrain.core.watchdog import Watchdog, answered

# How long a collective may wait for a rank. torch's own limits (NCCL 10 minutes, gloo 30) would end the job with a page
# of traceback on every rank but the one that is stuck; the watchdog ends it sooner, and says which rank it is.
COLLECTIVES = timedelta(hours=4)
MEETING = 600.0  # seconds in which all ranks must have come, where no other timeout is set


def compute_dtype(device: torch.device, name: str = "auto") -> torch.dtype:
    """The dtype of products and activations: as named, or, for "auto", bfloat16 on GPUs and float32 on CPUs."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def device_of(local_rank: int, on_cpu: bool) -> torch.device:
    """The GPU of this number, which is torch's current one from now on; without any, or `on_cpu`, the CPU. Raises
    ValueError where there are fewer GPUs.
    """
    if on_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {local_rank} has no GPU: {torch.cuda.device_count()} found; lower --nproc_per_node"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def alone() -> Any:
    """A store in which the ranks of a world of one meet."""
    return HashStore()


def host_group() -> dist.ProcessGroup:
    """A process group of all ranks whose messages go from host to host, without waiting for the GPU."""
    group = dist.new_group(backend="gloo", timeout=COLLECTIVES)  # rank 0 may write to a slow disk
    assert isinstance(group, dist.ProcessGroup), "this rank is one of all"
    return group


def meet(timeout: float) -> Any:
    """The store of the ranks that a launcher has started, once all have come to it. Raises ValueError where that is not
    within `timeout` seconds, with the ranks that have not come.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port, limit = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timedelta(seconds=timeout)
    is_keeper = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun keeps it
    no_way = f"{platform.node()}: no way to {address}:{port} within {timeout:g} s"
    still.note(f"waiting for {size} ranks at {address}:{port}")
    try:  # in time: PyTorch waits for ever where the first rank is stopped before it has answered
        kept = answered(lambda: TCPStore(address, port, size, is_keeper, limit, wait_for_workers=False), timeout + 1)
    except RuntimeError as error:
        raise ValueError(f"{no_way} ({str(error).splitlines()[0]})") from None
    store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", kept)
    keys = [f"here/{other}" for other in range(size)]
    store.set(keys[rank], platform.node())
    try:
        store.wait(keys)
    except dist.DistError:
        try:
            missing = answered(lambda: [str(other) for other in range(size) if not store.check([keys[other]])], timeout)
        except RuntimeError as error:
            raise ValueError(f"{no_way} ({error})") from None
        raise ValueError(
            f"rank {', '.join(missing[:5])} of {size} has not come within {timeout:g} s; look at what its machine says"
        ) from None
    still.note("the start")
    return store


def refuse_half_a_place() -> None:
    """Raises ValueError where a launcher has not said which rank of its machine this is: each would take itself for the
    only one, pack and verify all data, and take the first GPU.
    """
    if missing := [name for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE is set, {', '.join(missing)} not; start the ranks by launch/run.sh or torchrun, or set all: "
            f"by srun, RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE"
        )


@contextlib.contextmanager
def naming_the_network() -> Iterator[None]:
    """Raises ValueError where a machine has no network interface that is up: a rank that is alone needs one, too."""
    try:
        yield
    except RuntimeError as error:
        if "Unable to find interface" not in str(error):  # gloo, of an address of this machine
            raise
        raise ValueError(
            f"{platform.node()}: no network interface is up, not even lo, by which the parts of a rank talk; "
            f"ip link set lo up, or start the container with a network"
        ) from None


class World:
    """This process among all ranks: its rank, the number of ranks (size), its device, and a group for messages between
    hosts (control).
    """

    def __init__(
        self,
        symmetric_memory: bool = False,
        on_cpu: bool = False,
        *,
        timeout: float = 0.0,
        stacks: Path | None = None,
    ):
        """Join the process group, or found one of a single rank where torchrun has not started this process.

        `symmetric_memory`: prepare NCCL to gather by copy engines. `on_cpu`: leave the GPU alone. `timeout`: until the
        watchdog is closed, end the job when no rank gets anything done for so many seconds, and leave what each was at
        in the folder `stacks`; every rank calls `note` whenever it has done something. 0: never. A process may make
        several worlds, one after the other or at once: all of them share its one process group. Raises ValueError
        where this rank has no GPU for itself, or others do not come.
        """
        launched = "RANK" in os.environ
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            refuse_half_a_place()
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.device = device_of(self.local_rank, on_cpu)
        on_cuda = self.device.type == "cuda"
        if symmetric_memory:
            if not on_cuda:
                raise ValueError("parallel.symmetric_memory: only for GPUs, and none was found; set it to false")
            os.environ.setdefault("NCCL_CTA_POLICY", "2")  # no processor takes part in what a copy engine can do
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")  # 18 sockets a rank at 512 ranks, where each group had 511
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # collectives of which the flight recorder knows
        self.is_founder = not dist.is_initialized()
        if self.is_founder:
            store = meet(timeout or MEETING) if launched else alone()
            self.rank, self.size = (int(os.environ.get(key, there)) for key, there in (("RANK", 0), ("WORLD_SIZE", 1)))
        else:
            store, self.rank, self.size = _get_default_store(), dist.get_rank(), dist.get_world_size()
        self.is_main = self.rank == 0
        self.watchdog = Watchdog(store, self.rank, self.size, timeout, stacks or Path())
        with naming_the_network():
            if self.is_founder:
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
                    device_id=self.device if on_cuda else None,
                    store=store,
                    rank=self.rank,
                    world_size=self.size,
                    timeout=COLLECTIVES,
                )
            self.control = host_group()

    def note(self, doing: str) -> None:
        """Count a piece of work as completed; `doing` names the next one, which must take less than the timeout."""
        self.watchdog.note(doing)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor of any shape and dtype over the ranks, in place; -> the same tensor. The host does not wait."""
        dist.all_reduce(values)
        return values

    def from_main(self, value: Any) -> Any:
        """Rank 0's value on every rank: any picklable host-side object; tensors do not belong here."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control, device=torch.device("cpu"))
        return box[0]

    def barrier(self) -> None:
        """Let the host wait until every rank has called this."""
        dist.barrier(self.control)

    def wait_for_device(self) -> None:
        """Wait until the GPU has run every kernel that was launched; on a CPU there is nothing to wait for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        """Wait for all ranks to get here, because torchrun ends the others when one ends with a status other than 0.
        The process group ends with the world that founded it.
        """
        self.watchdog.close()
        self.barrier()
        if self.is_founder:
            dist.destroy_process_group()


class StopAgreement:
    """A stop that one rank is asked for, which all ranks agree on: a call returns True on every rank after the same
    piece of work. Every rank calls it between any two.

    The agreement costs an all-reduce of a byte between the hosts, which is started a piece of work ahead, so that
    nobody waits for it. A rank that is alone agrees with itself at once.
    """

    def __init__(self, world: World, asked: Callable[[], bool]):
        """`asked`: whether this rank wants to stop."""
        self.world, self.asked = world, asked
        self.pending: tuple[Tensor, dist.Work] | None = None

    def __call__(self) -> bool:
        """Begin to tell the other ranks whether this one wants to stop; -> whether any rank wanted to at the last
        call.
        """
        if self.world.size == 1:
            return self.asked()
        agreed = self.settle()
        flag = torch.tensor([self.asked()], dtype=torch.uint8)
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.world.control, async_op=True)
        assert work is not None
        self.pending = flag, work
        return agreed

    def settle(self) -> bool:
        """Wait for the agreement under way; -> whether any rank wanted to stop at the call that began it."""
        if self.pending is None:
            return False
        flag, work = self.pending
        work.wait()
        self.pending = None
        return bool(flag)

    def close(self) -> None:
        """End the agreement under way, as every rank does."""
        self.settle()
