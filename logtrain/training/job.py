"""A training job: from a config to built parts, a trained model and its export. The entries differ in little more
than their defaults.
"""

import functools
import os
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import disk_usage, rmtree
from typing import Literal

import torch

from logtrain.core.run_folder import claim
from logtrain.data.loader import Loader, LoaderConfig
from logtrain.data.shards import Split
from logtrain.model import hf
from logtrain.model import peft as adapter
from logtrain.model.llama import AttentionBackend, Llama, RandomWeights, Recompute
from logtrain.model.lora import LoraConfig, adapt, merged, new_rows, num_parameters
from logtrain.observe.metrics import Metrics
from logtrain.training.checkpoint import Checkpoints
from logtrain.training.checks import check_device, matching_tokenizer, valid_splits
from logtrain.training.optim import OptimConfig, adamw
from logtrain.training.publish import answer_as_trained, publish
from logtrain.training.sharding import ParallelConfig, Rows, World, build, full_tensors
from logtrain.training.trainer import Trainer, TrainerConfig

INTERRUPTED = 75  # exit status: stopped on request, everything saved (EX_TEMPFAIL: try again)


@dataclass(frozen=True, kw_only=True)
class JobConfig:
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


MAY_CHANGE = (  # by a resumed run: the losses do not depend on them beyond rounding
    *("resume", "runs", "data", "valid", "recompute", "dtype", "export_dtype", "attention_backend"),
    *("compile", "parallel", "loader.rows_per_batch"),
    *("trainer.log_every", "trainer.valid_every", "trainer.save_every", "trainer.keep", "trainer.stop_after"),
)


class Job:
    """The parts of a run on this rank. Every rank makes one, from the same config."""

    def __init__(self, config: JobConfig):
        config = self.config = replace(config, model=os.path.abspath(config.model), data=os.path.abspath(config.data))
        self.world = World(config.parallel.symmetric_memory)
        self.source = Path(config.model)
        self.llama = hf.read_config(self.source)
        self.folder = Path(config.runs) / config.name
        self.dtype = self.resolve_dtype(config.dtype)
        check_device(self.world.device, self.dtype, config.model, self.llama, config.attention_backend)
        self.mesh = self.world.mesh(config.parallel)
        verify = self.world.local_rank == 0  # once a node
        split = Split.open(config.data, "train", verify)
        self.tokenizer = matching_tokenizer(split, config.data, config.model, self.llama, config.loader.seq_len)
        self.fingerprint = split.manifest["fingerprint"]
        self.train_split = split
        valid = valid_splits(split, config.data, config.valid, verify)
        self.valid_loaders = {name: self.loader(split) for name, split in valid.items()}
        for key in ("keep_best", "patience"):
            if getattr(config.trainer, key) and not self.valid_loaders:
                raise ValueError(
                    f"trainer.{key} goes by the validation loss, but {config.data} has no validation split; prepare it "
                    f"with one, name one with --valid, or switch trainer.{key} off"
                )

    def resolve_dtype(self, name: str) -> torch.dtype:
        if name == "auto":
            return torch.bfloat16 if self.world.device.type == "cuda" else torch.float32
        return getattr(torch, name)

    # ---- data

    def loader(self, split: Split, rows_per_step: int = 0) -> Loader:
        """`rows_per_step = 0`: one micro-batch a rank, for validation."""
        config = self.config.loader
        at_once = self.world.size * config.rows_per_batch
        return Loader(
            split,
            LoaderConfig(
                seq_len=config.seq_len,
                rows_per_step=rows_per_step or at_once,
                rows_per_batch=config.rows_per_batch,
                attention=config.attention,
            ),
            seed=self.config.seed,
            pad_id=split.manifest["tokenizer"]["document_end_id"],
            rank=self.world.rank,
            world_size=self.world.size,
            pin_memory=self.world.device.type == "cuda",
        )

    def rows_per_step(self) -> int:
        """As configured, or as many as hold documents_per_step on average, for every rank the same number."""
        config = self.config.loader
        if not config.documents_per_step:
            return config.rows_per_step
        at_once = self.world.size * config.rows_per_batch
        documents_per_row = len(self.train_split.lengths) / self.loader(self.train_split).num_rows
        return max(1, round(config.documents_per_step / documents_per_row / at_once)) * at_once

    # ---- model

    def build(self, rows: Rows | None, plain: bool = False) -> Llama:
        """The sharded model with weights from `rows`; None leaves them to be filled from a checkpoint. `plain`: without
        the adapters.
        """
        lora = self.config.lora
        adapted = functools.partial(adapt, config=lora, dtype=self.dtype) if lora.rank and not plain else None
        model = build(self.llama, self.mesh, self.config.parallel, self.dtype, rows, adapted)
        for block in model.blocks:
            block.recompute = self.config.recompute
            if self.config.compile:  # the forward, within FSDP's hooks; attention on CPUs reads its lengths on the host
                block.forward = torch.compile(block.forward, fullgraph=self.world.device.type == "cuda")
        return model

    def initial_rows(self) -> Rows:
        if self.config.init == "random":
            rows = RandomWeights(self.llama, self.config.seed).rows
        else:
            rows = hf.Weights(self.source, self.llama).rows
        lora = self.config.lora
        return new_rows(rows, self.llama, lora, self.config.seed) if lora.rank else rows

    # ---- the run

    def run(self) -> int:
        """Train, or go on training, and export; -> exit status."""
        self.train_loader = self.loader(self.train_split, self.rows_per_step())
        config, rows = self.config, self.initial_rows()
        resume = config.resume == "auto"
        with claim(self.folder, config, resume, MAY_CHANGE) if self.world.is_main else nullcontext():
            torch.distributed.barrier(self.world.control)
            try:
                status = self.train(rows)
            except torch.OutOfMemoryError as error:
                remedy = "lower loader.rows_per_batch, or set recompute to selective or full"
                raise ValueError(f"{torch.cuda.get_device_name()}: out of memory; {remedy}") from error
        self.world.close()
        return status

    def train(self, rows: Rows) -> int:
        config, world = self.config, self.world
        checkpoints = Checkpoints(self.folder / "checkpoints", config.trainer.keep, config.trainer.keep_best)
        checkpoints.clean()
        if world.is_main:
            self.check_space(len(checkpoints.complete()))
        newest = world.from_main(next(reversed(checkpoints.complete()), None))
        model = self.build(None if newest and not config.lora.rank else rows)  # frozen weights are in no checkpoint
        torch.distributed.barrier(world.control)  # disks differ; NCCL's clock must not start before all have loaded
        optimizer = adamw(model, config.optim)
        state = checkpoints.load(newest, model, optimizer) if newest else self.first_state()
        if state["data"] != self.fingerprint:
            raise ValueError(
                f"{config.data}: has been prepared anew since {newest} was saved; the run would not be one"
            )
        rows_per_step = self.train_loader.config.rows_per_step
        # documents_per_step is rounded to what the ranks take at once
        if state.setdefault("rows_per_step", rows_per_step) != rows_per_step:
            raise ValueError(
                f"{newest}: its steps have {state['rows_per_step']} rows, here they would have {rows_per_step}; go on "
                f"with the same ranks and loader.rows_per_batch"
            )
        total = config.trainer.total_steps(self.train_loader.steps_per_epoch)
        with Metrics(self.folder, enabled=world.is_main, total_steps=total, resume_step=state["step"]) as metrics:
            if newest:
                metrics.info(f"resumed from {newest}")
            if wanted := config.loader.documents_per_step:
                mean = len(self.train_split.lengths) * rows_per_step / self.train_loader.num_rows
                metrics.info(
                    f"{rows_per_step} rows a step hold {mean:.1f} documents on average, {wanted} were asked for"
                )
            trainer = Trainer(
                config.trainer,
                model=model,
                optimizer=optimizer,
                optim=config.optim,
                train=self.train_loader,
                valid=self.valid_loaders,
                world=world,
                checkpoints=checkpoints,
                metrics=metrics,
                state=state,
            )
            if not trainer.fit():
                metrics.info(f"stopped after step {state['step']} of {total}, saved; --resume auto goes on")
                return INTERRUPTED
            optimizer.state.clear()
            if config.trainer.keep_best and state["best_step"] != state["step"]:
                checkpoints.load(checkpoints.at(state["best_step"]), model)
                metrics.info(f"step {state['best_step']} is the best: loss {state['best_loss']:.4f}, and is exported")
            if config.lora.rank:
                self.save_adapter(model, self.folder / "adapter")
            result = self.publish(model, self.folder / "export")
            metrics.info(
                f"exported to {self.folder / 'export'} ({result['dtype']}): loss {result['exported_loss']:.6f} "
                f"read back, {result['live_loss']:.6f} live, difference {result['difference']:+.1e}"
            )
        return 0

    def first_state(self) -> dict:
        return {"step": 0, "tokens": 0, "targets": 0, "data": self.fingerprint}

    def check_space(self, present: int) -> None:
        """Refuse to start what cannot end. A checkpoint takes 12 bytes a trained parameter; beside those kept there is
        one more while it is written. `present` of them are there already.
        """
        config, steps_per_epoch = self.config.trainer, self.train_loader.steps_per_epoch
        saves = -(-config.total_steps(steps_per_epoch) // (config.save_every or steps_per_epoch))
        more = max(0, min(saves, config.keep + config.keep_best + 1 if config.keep else saves) - present)
        trained = num_parameters(self.llama, self.config.lora) if self.config.lora.rank else self.llama.num_parameters
        need = 12 * more * trained + self.llama.num_parameters * self.export_dtype(self.config.export_dtype).itemsize
        free = disk_usage(self.folder).free
        if free < need:
            raise ValueError(
                f"{self.folder}: {need / 1e9:.1f} GB needed for {more} checkpoints and the export, {free / 1e9:.1f} GB "
                f"free; free some, set --runs to another disk, or --trainer.keep lower"
            )

    def export_dtype(self, name: str) -> torch.dtype:
        return self.dtype if name == "auto" else getattr(torch, name)

    def save_adapter(self, model: Llama, folder: Path) -> None:
        """Every rank gathers, rank 0 writes."""
        trained = {name: whole for name, whole in full_tensors(model) if "lora_" in name}
        if self.world.is_main:
            aside = folder.with_name(f".{folder.name}.partial")
            rmtree(aside, ignore_errors=True)
            adapter.save(aside, trained, self.llama, self.config.lora, str(self.source))
            if chat := self.chat():
                answer_as_trained(aside, *chat, of=self.source)
            rmtree(folder, ignore_errors=True)
            os.replace(aside, folder)

    def chat(self) -> tuple[str, int] | None:
        """Of chat data: the template that wrote them, and the token that ends an answer."""
        manifest = self.train_split.manifest
        return (manifest["chat"]["template"], manifest["tokenizer"]["document_end_id"]) if "chat" in manifest else None

    def publish(self, model: Llama, folder: Path, dtype: str | None = None) -> dict:
        tensors = full_tensors(model)
        if self.config.lora.rank:
            tensors = merged(tensors, self.llama, self.config.lora)
        return publish(
            folder,
            model,
            tensors,
            dtype=self.export_dtype(dtype or self.config.export_dtype),
            world=self.world,
            source=self.source,
            tokenizer_files=self.tokenizer.files,
            read_back=lambda weights: self.build(weights.rows, plain=True),
            check=next(iter(self.valid_loaders.values()), None) or self.loader(self.train_split),
            chat=self.chat(),
        )
