"""Checks before anything large is loaded, of what would fail later: a device that cannot run the model, or a disk that
cannot hold what the run will write.
"""

from pathlib import Path
from shutil import disk_usage

import torch
from torch.distributed.fsdp import FSDPModule

from logtrain.core.units import size
from logtrain.model.float8 import check_kept_blocks, check_sides
from logtrain.model.llama import LlamaConfig, use_attention, use_best_attention
from logtrain.model.lora import num_adapter_parameters
from logtrain.training.config import RunConfig

FIRST_WITH_FLOAT8 = (8, 9)  # compute capability


def check_device(device: torch.device, dtype: torch.dtype, config: RunConfig, shape: LlamaConfig) -> str:
    """Choose the attention that the config asks for; -> which that is, for the log. Raises ValueError where this
    device, dtype or shape cannot have it.
    """
    backend, in_float8 = config.attention_backend, config.precision == "fp8"
    if in_float8:
        check_kept_blocks(shape, config.fp8)
    if device.type != "cuda":
        if backend not in ("auto", "torch"):
            raise ValueError(f"attention_backend = {backend}: only for GPUs, and none was found; leave it at auto")
        return "attention by torch, as on all CPUs"
    if dtype == torch.float32:
        raise ValueError("dtype = float32: attention on GPUs computes in bfloat16; set dtype to bfloat16 or auto")
    if shape.head_dim % 8 or shape.head_dim > 256:
        raise ValueError(f"{config.model}: heads of size {shape.head_dim}; on GPUs a multiple of 8 up to 256")
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"{name}: attention needs an Ampere GPU (A100) or a newer one")
    if in_float8 and capability < FIRST_WITH_FLOAT8:
        name = torch.cuda.get_device_name(device)
        raise ValueError(
            f"{name}: precision = fp8 needs an Ada or Hopper GPU (L40S, H100) or a newer one; set it to bf16"
        )
    if in_float8:
        check_sides(shape, config.loader.seq_len * config.loader.rows_per_batch)
    if backend == "auto":
        return use_best_attention(capability[0], shape.head_dim)
    use_attention(backend)
    return f"attention by {backend}, as the config says"


def check_torch(config: RunConfig) -> None:
    """ValueError for a setting that computes wrong or cannot be had with the torch that is installed: 2.11 and 2.12 run
    everything but these.
    """
    if config.compile and torch.__version__ < "2.13":
        raise ValueError(f"compile: torch {torch.__version__} computes wrong gradients; install torch >= 2.13")
    if config.parallel.symmetric_memory and not hasattr(FSDPModule, "set_symm_mem_for_comm"):
        raise ValueError(f"parallel.symmetric_memory: torch {torch.__version__} has none; install torch >= 2.13")


def check_space(
    folder: Path,
    config: RunConfig,
    shape: LlamaConfig,
    export_dtype: torch.dtype,
    steps_per_epoch: int,
    num_present: int,
) -> None:
    """Raises ValueError where the disk of `folder` has less room than the run's checkpoints and its export will take.

    A checkpoint takes 12 bytes a trained parameter, and beside the checkpoints that are kept there is one more while it
    is written. `num_present`: checkpoints that are there already.
    """
    trainer = config.trainer
    saves = -(-trainer.total_steps(steps_per_epoch) // (trainer.save_every or steps_per_epoch)) - (
        not trainer.save_last
    )
    more = max(0, min(saves, trainer.keep + trainer.keep_best + 1 if trainer.keep else saves) - num_present)
    trained = num_adapter_parameters(shape, config.lora) or shape.num_parameters
    need = 12 * more * trained + (shape.num_parameters * export_dtype.itemsize if config.export_merged else 0)
    free = disk_usage(folder).free
    if free < need:
        raise ValueError(
            f"{folder}: {size(need)} needed for {more} checkpoints and the export, {size(free)} "
            f"free; free some, set --runs to another disk, or --trainer.keep lower"
        )
