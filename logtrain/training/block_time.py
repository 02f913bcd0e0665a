"""How long each rank computes for, by which a straggler is found.

A step takes all ranks equally long, because they wait for each other in every collective. But between the gathering of
a block's weights and its result no rank waits: the forward of the block in the middle of the model is timed. On a GPU
that is by two events in its stream, which are read when a record is made and the host waits for the device anyway.
"""

import statistics
import time

import torch
from torch import nn

from logtrain.model.llama import Llama

MOST = 256  # forwards between two records that are timed


class BlockTime:
    """Seconds that the middle block's forward takes, in training, on this rank."""

    def __init__(self, model: Llama, device: torch.device):
        self.is_cuda = device.type == "cuda"
        self.spans: list[tuple] = []  # of two events, or of two times in seconds
        self.began: torch.cuda.Event | float | None = None
        block = model.blocks[len(model.blocks) // 2]
        # After FSDP's own hooks: the weights are gathered when the first is called.
        self.hooks = [block.register_forward_pre_hook(self.before), block.register_forward_hook(self.after)]

    def now(self) -> "torch.cuda.Event | float":
        """This moment: of the device's stream, or of the host's clock."""
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def before(self, _block: nn.Module, _inputs: object) -> None:
        """Remember when the forward begins."""
        self.began = self.now() if torch.is_grad_enabled() and len(self.spans) < MOST else None

    def after(self, _block: nn.Module, _inputs: object, _output: object) -> None:
        """Remember when it ends."""
        if self.began is not None:
            self.spans.append((self.began, self.now()))
            self.began = None

    def read(self) -> float:
        """Median seconds of the forwards since the last call, 0 without any. The device must have run them."""
        spans, self.spans = self.spans, []
        if not spans:
            return 0.0
        return statistics.median(
            start.elapsed_time(end) / 1000 if self.is_cuda else end - start for start, end in spans
        )

    def close(self) -> None:
        """Time no more."""
        for hook in self.hooks:
            hook.remove()
