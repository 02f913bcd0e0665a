"""The collectives of FSDP2 on a rank that is alone: each fills its output as if every other rank held what this one
holds, and then takes the time that the links between GPUs would.

The time passes on the stream that FSDP2 gives to the collective, so that prefetch and overlap are those of the real
job. A kernel of one program waits for it, by the GPU's own clock of nanoseconds, whatever the frequency of its
processors; NCCL would use some of these, and slow down what runs beside it.
"""

from typing import Any

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter
from triton.language.extra.cuda import globaltimer

ONE_WARP = {"num_warps": 1}
LATENCY = 68e-6  # seconds of a collective beside its bytes: planning/gpus/h100-sxm.toml


@triton.jit
def begin_kernel(began_ptr):
    """Note the time, in nanoseconds."""
    tl.store(began_ptr, globaltimer())


@triton.jit
def wait_kernel(began_ptr, nanoseconds):
    """Wait until so many nanoseconds have passed since the time that was noted."""
    end = tl.load(began_ptr) + nanoseconds
    now = globaltimer()
    while now < end:
        now = globaltimer()
    tl.store(began_ptr, now)


class Links:
    """Links between `ranks` GPUs, as NCCL uses them. calls, bytes: of each kind of collective so far, bytes of its
    larger side.
    """

    def __init__(self, ranks: int, device: torch.device, bandwidth: float = 0.0):
        """`bandwidth`: bytes a second, bus bandwidth as nccl-tests define it; 0 for links that take no time."""
        self.ranks, self.bandwidth = ranks, bandwidth
        self.calls = {"all_gather": 0, "reduce_scatter": 0}
        self.bytes = {"all_gather": 0, "reduce_scatter": 0}
        self.clocks = {kind: torch.zeros(1, dtype=torch.int64, device=device) for kind in self.calls}

    def seconds(self, nbytes: int) -> float:
        """Time of a collective whose larger side has so many bytes."""
        return LATENCY + nbytes * (self.ranks - 1) / self.ranks / self.bandwidth if self.bandwidth else 0.0

    def begin(self, kind: str, whole: Tensor) -> None:
        """Count a collective; from here on its time passes, on the current stream."""
        self.calls[kind] += 1
        self.bytes[kind] += whole.nbytes
        if self.bandwidth and whole.is_cuda:
            begin_kernel[(1,)](self.clocks[kind], **ONE_WARP)

    def end(self, kind: str, whole: Tensor) -> None:
        """Let the current stream wait until the collective's time has passed."""
        if self.bandwidth and whole.is_cuda:
            wait_kernel[(1,)](self.clocks[kind], int(self.seconds(whole.nbytes) * 1e9), **ONE_WARP)

    def connect(self, model: nn.Module) -> None:
        """Let every unit that FSDP2 shards gather and scatter over these links."""
        if self.ranks == 1:
            return  # FSDP2 asks for no collective
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_all_gather(Gather(self))
                module.set_custom_reduce_scatter(Scatter(self))


class Gather(AllGather):
    """All-gather in which every rank sends what this one does."""

    def __init__(self, links: Links):
        self.links = links

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        self.links.begin("all_gather", output_tensor)
        output_tensor.view(self.links.ranks, -1).copy_(input_tensor.expand(self.links.ranks, -1))
        self.links.end("all_gather", output_tensor)


class Scatter(ReduceScatter):
    """Reduce-scatter in which every rank sends what this one does: the average is this one's."""

    def __init__(self, links: Links):
        self.links = links

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        assert op == dist.ReduceOp.AVG, f"FSDP2 asks for {op}, and the other ranks are taken to average"
        self.links.begin("reduce_scatter", input_tensor)
        output_tensor.copy_(input_tensor.view(self.links.ranks, -1)[0])
        self.links.end("reduce_scatter", input_tensor)
