"""The settings of a training run: the ranks, the loop, and all of them together. Nothing here imports
torch, so that `--help` answers at once.
"""

import math
import os
import re
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, Self

from logtrain.core.kinds import NONE_BY_DEFAULT, Config
from logtrain.core.location import FOLDER, MODEL, RUNS
from logtrain.data.config import LoaderConfig
from logtrain.model.config import AttentionBackend, Float8Config, LoraConfig, Recompute
from logtrain.observe.config import HealthConfig
from logtrain.training.optim_config import OptimConfig
from logtrain.training.preference_config import PreferenceConfig

Role = Literal["domain", "general", "chat"]
LONGEST_NAME = 255 - len("..rehearsal.json.partial")  # bytes: of a file's name beside the run, which has this, too
ONLY = ""  # the name of a source that is the only one


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Config, prefix="parallel."):
    """How the ranks share the model."""

    shard_ranks: int = 0
    """Ranks that share one copy of the model; the copies average gradients (HSDP). 0: all ranks share one (FSDP)."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which gradients are summed over ranks."""
    reshard_after_forward: bool = True
    """Free a block's gathered weights after its forward and gather them again in the backward."""
    prefetch: int = 1
    """Blocks whose weights are gathered ahead of the one that computes. 0: as FSDP2 does, one, later."""
    symmetric_memory: bool = False
    """Gather weights within a node by the GPUs' copy engines (NCCL's symmetric memory), beside the matrix products."""
    timeout: float = 600.0
    """End the job, and name the rank that is stuck, when no rank completes anything for so many seconds. 0: never."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("prefetch", "timeout"):
            if getattr(self, name) < 0:
                raise ValueError(f"parallel.{name} = {getattr(self, name)} must not be negative")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Config, prefix="trainer."):
    """The loop of a run: its length, and when it logs, validates and saves."""

    epochs: int = 1
    """Passes over the training split."""
    max_steps: int = 0
    """End the run and its learning-rate schedule after so many steps. 0: after all steps of the epochs."""
    max_grad_norm: float = 1.0
    """Global L2 norm to which gradients are clipped. 0: no clipping."""
    max_skipped: int = 3
    """End after so many steps in a row whose gradients are not finite. Such a step updates nothing."""
    log_every: int = 10
    """Steps between records."""
    valid_every: int = 0
    """Steps between validations, beside one before the first step and one after the last. 0: one each epoch."""
    save_every: int = 0
    """Steps between checkpoints, beside one after the last step. 0: one each epoch."""
    keep: int = 2
    """Number of the newest checkpoints that are kept. 0: all."""
    keep_best: bool = False
    """Save whenever the first validation set's loss is the lowest so far, keep that checkpoint, and export it."""
    patience: int = 0
    """End after so many validations in a row without a lower loss on the first set. 0: never."""
    save_last: bool = True
    """Save after the last step, too. Without it the export, once it is proven, is all that is left of that step."""
    forget_budget: float = 0.0
    """The most that the loss on a general or chat set may rise, as a share of that before the first step: at every
    validation the share of replay is steered by it, and the best step is the best of those within it. 0: no budget."""
    replay_source: str = "replay"
    """With a budget: the source in data of which the share is steered; mix has the one that it begins with."""
    replay_bounds: tuple[float, ...] = (0.01, 0.5)
    """With a budget: the least and the greatest share of replay."""
    replay_kl: float = 0.0
    """Share of the teacher in the objective on text that a model wrote with `logtrain replay --teacher_top_k`: 0 takes
    the cross-entropy of what it wrote, 1 the divergence from all that it could have written; the mean gradient is the
    same, its noise less. The loss that is told stays the cross-entropy."""
    stop_after: int = 0
    """Save and exit with status 75 after this step, as after SIGTERM; the schedule does not change. 0: never."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("epochs", "log_every", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} = {getattr(self, name)} must be at least 1")
        for name in ("max_steps", "max_grad_norm", "valid_every", "save_every", "keep", "patience", "stop_after"):
            if getattr(self, name) < 0:
                raise ValueError(f"trainer.{name} = {getattr(self, name)} must not be negative")
        if not 0 <= self.replay_kl <= 1:
            raise ValueError(f"trainer.replay_kl = {self.replay_kl} must be from 0 to 1")
        if not 0 <= self.forget_budget < math.inf:
            raise ValueError(f"trainer.forget_budget = {self.forget_budget} must be a finite number >= 0")
        if len(self.replay_bounds) != 2 or not 0 < self.replay_bounds[0] <= self.replay_bounds[1] < 1:
            raise ValueError(f"trainer.replay_bounds = {self.replay_bounds}: expected two shares, the least first")
        if self.forget_budget and not self.keep_best:
            raise ValueError("trainer.forget_budget keeps the best step within it: set trainer.keep_best")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run. Raises ValueError where `max_steps` is more than the epochs have."""
        most = self.epochs * steps_per_epoch
        if self.max_steps > most:
            raise ValueError(
                f"trainer.max_steps = {self.max_steps}, but trainer.epochs = {self.epochs} gives {most} steps; raise it"
            )
        return self.max_steps or most


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """All settings of a training run."""

    trains_on: ClassVar[Literal["documents", "chats", "pairs", "either"]] = "either"
    name: str
    """The run's name: everything it writes is under <runs>/<name>/."""
    model: Annotated[str, MODEL]
    """Hugging Face folder of a Llama model; with init = "random" only its config.json is read."""
    data: Annotated[str | tuple[str, ...], FOLDER]
    """Folder written by logtrain.prepare; or several to mix, each NAME=FOLDER, with mix.NAME for the share of each."""
    mix: Annotated[dict[str, float], NONE_BY_DEFAULT] = field(default_factory=dict)
    """Share of a source in the tokens of every step, by its name in data; the shares have the sum 1."""
    valid: Annotated[tuple[str, ...], NONE_BY_DEFAULT, FOLDER] = ()
    """Validation sets beside the data's own, each as NAME=FOLDER of prepared data, of which the valid split is read."""
    roles: Annotated[dict[str, Role], NONE_BY_DEFAULT] = field(default_factory=dict)
    """What a validation set tells, by its name: domain, what is to be learned; general or chat, what is not to be
    forgotten. The first set is of the domain unless it has another role."""
    runs: Annotated[str, RUNS] = "runs"
    """Folder of all runs."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Start from the model's weights, or from random ones."""
    resume: Literal["none", "auto"] = "none"
    """none: start a new run. auto: go on from the newest complete checkpoint of this run, or start it."""
    seed: int = 1309
    """Seed of packing, row order, random weights and dropout."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute precision; master weights are fp32 in any case. auto: bfloat16 on GPUs, float32 on CPUs."""
    precision: Literal["auto", "bf16", "fp32", "fp8"] = "auto"
    """Precision of the blocks' matrix products. fp8: float8, by the recipe of fp8, where all else is as dtype says; on
    GPUs from Hopper and Ada on, computed alike on CPUs. bf16, fp32: dtype, by its other name. auto: as dtype says.
    """
    export_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the exported weights. auto: the compute precision."""
    export_merged: bool = True
    """With LoRA: write export/, the whole model with its adapters merged, beside adapter/, which is proven either way.
    """
    recompute: Recompute = "none"
    """Activations computed again in the backward: none; selective, all but products and attention; full, all of a
    block.
    """
    compile: bool = False
    """Compile every block with torch.compile: the start takes minutes; then there are fewer kernel launches, and one
    more copy in each block.
    """
    attention_backend: AttentionBackend = "auto"
    """Attention on GPUs: torch's own FlashAttention-2, the package flash_attn_3 (fa3, for Hopper), flash-attn-4 (fa4,
    for Hopper and Blackwell), or flash-attn. auto: the first of fa3, fa4 and torch that is there; log.txt says which.
    """
    track: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...], NONE_BY_DEFAULT] = ()
    """Trackers that get every record, with the same names: needs the extra `track`."""
    prometheus: int = 0
    """Port of 127.0.0.1 at which Prometheus finds the last figures, under /metrics. 0: none."""
    rehearse: bool = False
    """Train nothing: try in minutes, on two layers of the model, all that the run would do; docs/training.md."""
    show: int = 0
    """Print so many documents of the first step as they are trained, with what is predicted between « and »."""
    price: float = 0.0
    """Price of a GPU for an hour, in dollars, by which a run tells what it costs. 0: not known."""
    fp8: Float8Config = field(default_factory=Float8Config)
    lora: LoraConfig = field(default_factory=LoraConfig)
    dpo: PreferenceConfig = field(default_factory=PreferenceConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    health: HealthConfig = field(default_factory=HealthConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.name in ("", ".", "..") or "/" in self.name:
            raise ValueError(f"name = {self.name!r}: expected the name of a folder in runs, without /")
        if (length := len(os.fsencode(self.name))) > LONGEST_NAME:
            raise ValueError(
                f"name = {self.name[:20] + '...'!r}: has {length} bytes, at most {LONGEST_NAME} leave room for the "
                "names of the files beside the run; shorten it"
            )
        self.check_sources()
        self.check_budget()
        if not (self.export_merged or self.lora.rank):
            raise ValueError("export_merged = false: only with adapters (lora.rank), which are exported alone then")
        if self.trains_on in ("documents", "chats") and self.dpo != PreferenceConfig():
            raise ValueError("dpo: its settings are of logtrain dpo alone; leave them out")
        if self.show < 0:
            raise ValueError(f"show = {self.show} must not be negative")
        if not 0 <= self.prometheus <= 65535:
            raise ValueError(f"prometheus = {self.prometheus}: expected a port, up to 65535")
        if not 0 <= self.price < math.inf:
            raise ValueError(f"price = {self.price} must be a finite number >= 0")
        if self.dtype not in ("auto", self.compute_dtype):
            raise ValueError(f"dtype = {self.dtype} and precision = {self.precision} differ; leave one of them at auto")
        if self.precision == "fp8" and self.compile:
            raise ValueError("precision = fp8: not with compile; leave one of them out")

    @property
    def compute_dtype(self) -> str:
        """The dtype of activations and of products that are not in float8, or "auto"."""
        return {"bf16": "bfloat16", "fp32": "float32"}.get(self.precision, self.dtype)

    def with_absolute_paths(self) -> Self:
        """The config with absolute paths of model and data, which means the same in any working directory."""
        data = {name: os.path.abspath(folder) for name, folder in self.sources.items()}
        several = tuple(f"{name}={folder}" for name, folder in data.items())
        return replace(self, model=os.path.abspath(self.model), data=several if self.mix else data[ONLY])

    @property
    def sources(self) -> dict[str, str]:
        """Folders of prepared data by name; a folder that is the only one has the name ONLY."""
        if isinstance(self.data, str):
            return {ONLY: self.data}
        return {name: folder for name, _, folder in (text.partition("=") for text in self.data)}

    def check_sources(self) -> None:
        """Raises ValueError where data and mix do not name the same sources, with shares that have the sum 1."""
        if isinstance(self.data, str):
            if self.mix:
                raise ValueError(f"mix.{next(iter(self.mix))}: data = {self.data!r} is a single folder; leave mix out")
            return
        for text in self.data:
            name, equals, folder = text.partition("=")
            if not (re.fullmatch(r"[\w-]+", name) and equals and folder):
                raise ValueError(f"data = {text!r}: expected NAME=FOLDER, the name of letters, digits, _ and -")
        if len(self.sources) < max(2, len(self.data)):
            raise ValueError(
                f"data = {' '.join(self.data)!r}: expected a folder, or several as NAME=FOLDER, each name once"
            )
        if self.mix.keys() != self.sources.keys():
            raise ValueError(
                f"mix names {', '.join(self.mix) or 'nothing'}, data {', '.join(self.sources)}; give mix.NAME for each"
            )
        for name, share in self.mix.items():
            if not 0 < share < 1:
                raise ValueError(f"mix.{name} = {share} must be above 0 and below 1")
        if abs(sum(self.mix.values()) - 1) > 1e-6:
            raise ValueError(
                f"mix has the sum {sum(self.mix.values()):g}; the shares of all sources must have the sum 1"
            )
        if self.loader.rows_per_batch > 1 or self.loader.documents_per_step:
            raise ValueError(
                "with several sources a micro-batch is one row, so that the loss of each is known, and a step is of "
                "loader.rows_per_step rows: set loader.rows_per_batch to 1 and loader.documents_per_step to 0"
            )

    def check_budget(self) -> None:
        """Raises ValueError where there is a budget, and no replay to steer or no set that tells what is forgotten."""
        name, (least, most) = self.trainer.replay_source, self.trainer.replay_bounds
        if not self.trainer.forget_budget:
            return
        if not least <= self.mix.get(name, 0) <= most:
            raise ValueError(
                f"trainer.forget_budget steers mix.{name}, which must be in data and mix, from {least} to {most} "
                f"(trainer.replay_bounds); logtrain replay writes such data, trainer.replay_source names another source"
            )
        if not {"general", "chat"}.intersection(self.roles.values()):
            raise ValueError("trainer.forget_budget: no set has the role general or chat; give one with roles.NAME")


@dataclass(frozen=True, kw_only=True)
class PairsRunConfig(RunConfig):
    """All settings of a run that trains on pairs of answers."""

    trains_on = "pairs"


# What a resumed run may set anew: the losses do not depend on it beyond rounding.
MAY_CHANGE = (
    *("resume", "runs", "data", "valid", "recompute", "dtype", "export_dtype", "attention_backend"),
    *("precision", "fp8"),
    *("compile", "parallel", "loader.rows_per_batch", "price", "health", "track", "prometheus", "show", "rehearse"),
    *("trainer.log_every", "trainer.valid_every", "trainer.save_every", "trainer.keep", "trainer.stop_after"),
    *("trainer.save_last", "export_merged"),
)
