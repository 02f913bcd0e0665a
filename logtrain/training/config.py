"""What a user may set of a training run: the optimizer, the ranks, the loop, and all of it together. Nothing here
imports torch, so that `--help` answers at once.
"""

import math
import os
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from logtrain.data.config import LoaderConfig
from logtrain.model.config import AttentionBackend, LoraConfig, Recompute


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: float = 1e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup_ratio: float = 0.1
    """Share of all steps over which the rate rises linearly to its peak."""
    min_lr_ratio: float = 0.0
    """Rate of the last step as a share of the peak (cosine and linear)."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    """Decoupled decay of the matrices; norm scales do not decay."""

    def __post_init__(self):
        for name, low, high in (("warmup_ratio", 0, 1), ("min_lr_ratio", 0, 1), ("beta1", 0, 1), ("beta2", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"optim.{name} = {getattr(self, name)} is outside [{low}, {high}]")
        for name in ("lr", "weight_decay", "eps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optim.{name} = {getattr(self, name)} must be a finite number >= 0")

    def lr_at(self, step: int, total_steps: int) -> float:
        """Learning rate of the update `step` (0-based) out of `total_steps`.

        The warm-up takes ceil(ratio * total) steps and its first already moves: (step + 1) / warm-up. The first step
        after it has the peak, unless it is the last, which has `min_lr_ratio` of it (Loshchilov & Hutter 2017,
        arXiv:1608.03983, one cycle).
        """
        warmup = math.ceil(self.warmup_ratio * total_steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        last = total_steps - 1
        progress = 1.0 if step == last > 0 else (step - warmup) / max(1, last - warmup)
        share = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[
            self.schedule
        ]
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * share)


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

    timeout: float = 600.0
    """Seconds in which no rank gets anything done after which the job ends and says which rank is stuck. 0: never."""

    def __post_init__(self):
        for name in ("prefetch", "timeout"):
            if getattr(self, name) < 0:
                raise ValueError(f"parallel.{name} = {getattr(self, name)} must not be negative")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    epochs: int = 1
    """Passes over the training split."""
    max_steps: int = 0
    """End after this many steps, the schedule with them. 0: as many as the epochs have."""
    max_grad_norm: float = 1.0
    """Global L2 norm to which gradients are clipped. 0: no clipping."""
    max_skipped: int = 3
    """End after so many steps in a row whose gradients are not finite. Such a step updates nothing."""
    log_every: int = 10
    """Steps between records."""
    valid_every: int = 0
    """Steps between validations; there is one before the first step and one after the last in any case. 0: each
    epoch.
    """
    save_every: int = 0
    """Steps between checkpoints; there is one after the last step in any case. 0: each epoch."""
    keep: int = 2
    """Newest checkpoints that stay. 0: all."""
    keep_best: bool = False
    """Save whenever the first validation set's loss is the lowest so far, keep that checkpoint, and export it."""
    patience: int = 0
    """End after so many validations without a lower loss. 0: never."""
    stop_after: int = 0
    """Save and exit with 75 after this step, as SIGTERM would; the schedule does not change. 0: never."""

    def __post_init__(self):
        for name in ("epochs", "log_every", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} = {getattr(self, name)} must be at least 1")
        for name in ("max_steps", "max_grad_norm", "valid_every", "save_every", "keep", "patience", "stop_after"):
            if getattr(self, name) < 0:
                raise ValueError(f"trainer.{name} = {getattr(self, name)} must not be negative")

    def total_steps(self, steps_per_epoch: int) -> int:
        most = self.epochs * steps_per_epoch
        if self.max_steps > most:
            raise ValueError(
                f"trainer.max_steps = {self.max_steps}, but {self.epochs} epochs have {most}; raise trainer.epochs"
            )
        return self.max_steps or most


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str
    """The run's name: everything it writes is under <runs>/<name>/."""
    model: str
    """Hugging Face folder of a Llama model; with init = "random" only its config.json is read."""
    data: str
    """Folder written by logtrain.prepare."""
    valid: tuple[str, ...] = ()
    """More validation sets, each NAME=FOLDER of prepared data (its valid split), beside the data's own."""
    runs: str = "runs"
    """Folder of all runs."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Start from the model's weights, or from random ones."""
    resume: Literal["none", "auto"] = "none"
    """auto: go on from the newest complete checkpoint of this run, or start it."""
    seed: int = 1309
    """Decides packing, row order, random weights and what dropout drops."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute precision; master weights are fp32 in any case. auto: bfloat16 on GPUs, float32 on CPUs."""
    export_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the exported weights. auto: the compute precision."""
    recompute: Recompute = "none"
    """Activations computed again in the backward. selective: all but matrix products and attention; full: all of a
    block.
    """
    compile: bool = False
    """Compile every block with torch.compile: minutes at the start, fewer launches after; but a copy of the gate-up
    projection in every backward, as what the kernels do in place must look functional to it.
    """
    attention_backend: AttentionBackend = "torch"
    """On GPUs. torch: its own FlashAttention-2; fa3: the package flash_attn_3 (Hopper); flash_attn: flash-attn."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def with_absolute_paths(self) -> Self:
        """The same from any folder."""
        return replace(self, model=os.path.abspath(self.model), data=os.path.abspath(self.data))


MAY_CHANGE = (  # by a resumed run: the losses do not depend on them beyond rounding
    *("resume", "runs", "data", "valid", "recompute", "dtype", "export_dtype", "attention_backend"),
    *("compile", "parallel", "loader.rows_per_batch"),
    *("trainer.log_every", "trainer.valid_every", "trainer.save_every", "trainer.keep", "trainer.stop_after"),
)
