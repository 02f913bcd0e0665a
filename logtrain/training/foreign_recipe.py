"""The settings of another trainer's run as those of a run here: the same rows, steps and learning rates, as far as a
file says them.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from logtrain.core.config import REQUIRED, build, fields_of
from logtrain.core.kinds import is_open
from logtrain.core.location import is_hub_id
from logtrain.model.config import LoraTarget
from logtrain.training.config import RunConfig
from logtrain.training.foreign_data import dataset_types, prepare_flags
from logtrain.training.foreign_file import AXOLOTL, HOSTED, Given

Stage = Literal["auto", "cpt", "sft"]
STAGES = {"pt": "cpt", "sft": "sft"}
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
SCHEDULES |= {"cosine_with_min_lr": "cosine"}
ADAMW = ("adamw", "paged_adamw", "ao_adamw", "optimi_adamw")  # and not galore_adamw, schedule_free_adamw, ...
PLACEHOLDERS = {"name": "run", "model": "model", "data": "data"}


class Recipe(NamedTuple):
    """A run as this program has it."""

    stage: str
    """The command: cpt or sft."""
    settings: dict[str, Any]
    """Settings of RunConfig by their dotted keys."""
    prepare: list[str]
    """Flags of logtrain prepare for the run's data."""
    notes: list[str]
    """What was assumed, in sentences."""
    unused: dict[str, str]
    """Why a setting of the file has no effect here, by its name there."""


def translate(given: Given, stage: Stage, gpus: int) -> Recipe:
    """The run that the settings describe, on so many GPUs. Raises ValueError for what has no like here."""
    notes: list[str] = []
    command = stage_of(given, stage, notes)
    settings = dict(
        setting
        for part in (
            names(given),
            rows(given, command, gpus, notes),
            learning_rate(given),
            loop(given),
            adapters(given),
            numerics(given),
        )
        for setting in part
        if setting[1] is not None
    )
    check(given, settings)
    return Recipe(command, settings, prepare_flags(given, command), notes, given.unused)


def check(given: Given, settings: dict[str, Any]) -> None:
    """Raises ValueError where a run would refuse the settings."""
    fields = fields_of(RunConfig)
    values = {key: each.default for key, each in fields.items() if each.default is not REQUIRED}
    values = {key: value for key, value in values.items() if not is_open(fields[key].kind)}
    try:
        build(RunConfig, values | PLACEHOLDERS | settings)
    except ValueError as error:
        raise ValueError(f"{given.file}: {error}") from None


def stage_of(given: Given, stage: Stage, notes: list[str]) -> str:
    """cpt or sft, as `stage` or the file says."""
    if stage != "auto":
        return stage
    if given.trainer == HOSTED and not given.text("stage"):
        guess = "sft" if given.text("finetuning_type") == "lora" else "cpt"
        notes.append(f"The file does not say what is trained on; taken for {guess}. --stage cpt or sft says it.")
        return guess
    if given.trainer == AXOLOTL:
        return "cpt" if "pretraining_dataset" in given.values or "completion" in dataset_types(given) else "sft"
    found = given.text("stage") or ""
    if found not in STAGES:
        raise given.error("stage", f"logtrain trains {' and '.join(STAGES)}")
    return STAGES[found]


def names(given: Given) -> Iterator[tuple[str, Any]]:
    """What the run is called, and where its model and its data are."""
    scheme, mark, path = (given.text("output_dir") or given.file.stem).rpartition("://")
    output = Path(path, given.file.stem) if mark and "/" not in path else Path(path)  # a bucket has no name for a run
    name = given.text("run_name") or (output.name if output.name.strip(".") else given.file.stem)
    yield "name", name
    model = given.text("model_name_or_path")
    yield "model", f"hf://{model}" if model and is_hub_id(model) else model
    yield "data", f"data/{name}"
    if "output_dir" in given.called and output.parent != Path():
        yield "runs", f"{scheme}{mark}{output.parent}"
    yield "init", "random" if given.flag("train_from_scratch") else None
    resume = given.values.get("resume_from_checkpoint")
    if resume is True or resume in ("true", "auto"):
        yield "resume", "auto"
    elif resume:
        given.without_effect("resume_from_checkpoint", "a run goes on from its own checkpoints: --resume auto")


def rows(given: Given, stage: str, gpus: int, notes: list[str]) -> Iterator[tuple[str, Any]]:
    """The rows of a step."""
    batch = given.integer("per_device_train_batch_size") or 1
    per_step = batch * (given.integer("gradient_accumulation_steps") or 1) * gpus
    packing, is_neat = given.flag("packing"), given.flag("neat_packing")
    if is_neat and given.trainer != AXOLOTL:  # which packs
        packing = True
    is_packed = stage == "cpt" if packing is None else packing
    yield "loader.seq_len", given.integer("cutoff_len")
    if is_packed:
        yield "loader.rows_per_step", per_step
        yield "loader.rows_per_batch", batch
        if not (is_neat or given.trainer == HOSTED):
            notes.append("Documents in a row saw each other there; loader.attention document keeps them apart, faster.")
            yield "loader.attention", "row"
    else:
        notes.append(
            f"A document was a row there, padded: {per_step} documents a step are as many rows here as hold them."
        )
        yield "loader.documents_per_step", per_step


def learning_rate(given: Given) -> Iterator[tuple[str, Any]]:
    """The optimizer, and the course of the learning rate."""
    optimizer = given.text("optim") or "adamw"
    if not optimizer.startswith(ADAMW):
        raise given.error("optim", "logtrain has AdamW (adamw_torch_fused)")
    if "8bit" in optimizer or "4bit" in optimizer or "paged" in optimizer:
        given.without_effect("optim", "AdamW with its states in float32, sharded over the ranks")
    yield "optim.lr", given.number("learning_rate")
    schedule = given.text("lr_scheduler_type")
    if schedule and schedule not in SCHEDULES:
        raise given.error("lr_scheduler_type", f"logtrain has {', '.join(SCHEDULES)}")
    yield "optim.schedule", SCHEDULES[schedule] if schedule else None
    yield "optim.min_lr_ratio", least_share(given)
    steps, ratio = given.number("warmup_steps") or 0, given.number("warmup_ratio")
    if schedule == "constant":  # which has no warm-up there
        steps, ratio = 0, 0.0
    if 0 < steps < 1:  # transformers 5: a share
        steps, ratio = 0, steps
    if steps:
        yield "optim.warmup_steps", int(steps)
    yield "optim.warmup_ratio", 0.0 if steps else ratio
    yield "optim.weight_decay", given.number("weight_decay")
    yield "optim.beta1", given.number("adam_beta1")
    yield "optim.beta2", given.number("adam_beta2")
    yield "optim.eps", given.number("adam_epsilon")


def least_share(given: Given) -> float | None:
    """The learning rate at the end as a share of the peak."""
    extra = given.values.get("lr_scheduler_kwargs") or {}
    if not isinstance(extra, dict):
        raise given.error("lr_scheduler_kwargs", "expected a table")
    if extra.keys() - {"min_lr", "min_lr_rate"}:
        raise given.error("lr_scheduler_kwargs", "logtrain knows min_lr and min_lr_rate")
    share = given.number("cosine_min_lr_ratio")
    try:
        if "min_lr_rate" in extra:
            share = float(extra["min_lr_rate"])
        elif "min_lr" in extra:
            share = float(extra["min_lr"]) / (given.number("learning_rate") or math.inf)
    except (TypeError, ValueError):
        raise given.error("lr_scheduler_kwargs", "expected numbers") from None
    return share


def loop(given: Given) -> Iterator[tuple[str, Any]]:
    """The length of the run, and when it logs, validates and saves."""
    epochs, most = given.number("num_train_epochs"), given.integer("max_steps") or 0
    if epochs is not None:
        if epochs != int(epochs) and most <= 0:
            raise given.error("num_train_epochs", "logtrain takes whole passes; max_steps ends a run within one")
        yield "trainer.epochs", max(1, math.ceil(epochs))
    yield "trainer.max_steps", most if most > 0 else None
    yield "trainer.max_grad_norm", given.number("max_grad_norm")
    yield "seed", given.integer("seed")
    yield "trainer.log_every", every(given, "logging_steps")
    for strategy, steps, per_epoch, ours in (
        ("eval_strategy", "eval_steps", "evals_per_epoch", "valid_every"),
        ("save_strategy", "save_steps", "saves_per_epoch", "save_every"),
    ):
        how = given.text(strategy) or ("steps" if steps in given.called else "epoch")
        if how not in ("steps", "epoch", "no", "best"):
            raise given.error(strategy, "expected steps, epoch or no")
        if how == "steps":
            yield f"trainer.{ours}", every(given, steps)
        else:
            given.without_effect(steps, f"once an epoch; trainer.{ours} counts steps")
        if how == "no":
            given.without_effect(strategy, f"once an epoch at least; trainer.{ours} counts steps")
        given.without_effect(per_epoch, f"once an epoch; trainer.{ours} counts steps")
    keep = given.integer("save_total_limit")
    yield "trainer.keep", keep if keep and keep > 0 else None
    best = given.flag("load_best_model_at_end") or given.text("save_strategy") == "best"
    yield "trainer.keep_best", best or None
    yield "trainer.patience", given.integer("early_stopping_steps")
    metric = given.text("metric_for_best_model")
    if best and metric not in (None, "loss", "eval_loss"):
        raise given.error("metric_for_best_model", "the best checkpoint is that of the lowest validation loss")
    for key in ("metric_for_best_model", "greater_is_better"):
        given.without_effect(key, "the best checkpoint is that of the lowest validation loss")


def every(given: Given, key: str) -> int | None:
    """Steps between two of something; None for a share of the run, which is not known in steps."""
    steps = given.number(key)
    if steps is None or steps < 1:
        given.without_effect(key, "a share of the run; here it counts steps")
        return None
    return given.integer(key)


def adapters(given: Given) -> Iterator[tuple[str, Any]]:
    """LoRA, or all parameters."""
    method = given.text("finetuning_type") or "full"
    if method not in ("full", "lora", "qlora"):
        raise given.error("finetuning_type", "logtrain trains all parameters (full) or adapters (lora)")
    if method == "full":
        for key in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "lora_target_linear", "use_rslora"):
            given.without_effect(key, "all parameters are trained")
        yield "lora.rank", 0
        return
    if method == "qlora":
        given.without_effect("finetuning_type", "LoRA; frozen weights are not quantised here, which is exact")
    rank = given.integer("lora_rank")
    if not rank or rank < 1:
        raise given.error("lora_rank", "expected the rank of the adapters")
    alpha = given.number("lora_alpha")
    alpha = 2.0 * rank if alpha is None else alpha
    yield "lora.rank", rank
    yield "lora.alpha", alpha * math.sqrt(rank) if given.flag("use_rslora") else alpha  # its scale: alpha / sqrt(rank)
    yield "lora.dropout", given.number("lora_dropout")
    targets, all_there = given.texts("lora_target"), get_args(LoraTarget)
    if not (targets in (["all"], ["all-linear"]) or given.flag("lora_target_linear") or not targets):
        if unknown := [name for name in targets if name not in all_there]:
            raise given.error("lora_target", f"{unknown[0]}: adapters are for all, or some of {', '.join(all_there)}")
        yield "lora.targets", targets


def numerics(given: Given) -> Iterator[tuple[str, Any]]:
    """Precision, recomputation, sharding."""
    words = {"bf16": "bfloat16", "none": "float32", "no": "float32", "fp32": "float32"}
    mixed, bf16 = given.text("mixed_precision"), given.values.get("bf16")
    if given.flag("fp16") or mixed not in (None, *words):
        raise given.error("fp16" if mixed is None else "mixed_precision", "logtrain computes in bfloat16 or float32")
    if mixed:
        yield "dtype", words[mixed]
    elif bf16 not in ("auto", "full", None):
        off = "float32" if given.trainer == AXOLOTL else "auto"  # LLaMA-Factory then takes the model's own
        yield "dtype", "bfloat16" if given.flag("bf16") else off
    off, on = given.flag("disable_gradient_checkpointing"), given.values.get("gradient_checkpointing")
    if on is not None or off is not None:
        yield "recompute", "full" if (on not in (False, "false") and on is not None) or off is False else "none"
    compiled = given.values.get("torch_compile")
    yield "compile", given.flag("torch_compile") or None if compiled != "auto" else None
    attention = given.text("flash_attn") or ""
    fa3 = attention in ("fa3", "flash_attention_3")
    yield "attention_backend", "fa3" if fa3 else None
    if not fa3:
        given.without_effect("flash_attn", "attention is a fused one in any case; attention_backend chooses")
    backend, zero = given.text("distributed_backend"), given.integer("zero_stage")
    if backend == "ddp":
        given.without_effect("zero_stage", "it is DeepSpeed's, and the run was of DDP")
        yield "parallel.shard_ranks", 1
    elif zero != 3:
        given.without_effect("zero_stage", "all is sharded over all ranks (FSDP, as stage 3); parallel.shard_ranks")
    given.without_effect("deepspeed", "all is sharded over all ranks (FSDP, as stage 3); parallel.shard_ranks")
