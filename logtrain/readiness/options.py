"""What is installed, and what each option of a run would need beside it."""

import platform
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch.cuda import nccl

VERSIONS = ("torch", "triton", "numpy", "safetensors", "tokenizers")


class Option(NamedTuple):
    """Something that a user may ask for."""

    name: str
    """The setting or command."""
    modules: tuple[str, ...]
    """What must be importable."""
    remedy: str
    """What installs it."""
    on_gpus: bool = False
    """Whether it is of use on GPUs alone."""


OPTIONS = (
    Option(
        "attention_backend = fa3",
        ("flash_attn_3",),
        "pip install flash_attn_3 (Hopper: its wheel, or from hopper/ of Dao-AILab/flash-attention)",
        True,
    ),
    Option("attention_backend = fa4", ("flash_attn.cute",), "pip install --pre 'logtrain[fa4]'", True),
    Option(
        "attention_backend = flash_attn",
        ("flash_attn.flash_attn_interface",),
        "pip install 'logtrain[flash]' --no-build-isolation",
        True,
    ),
    Option("logtrain serve", ("starlette", "uvicorn"), "pip install 'logtrain[serve]'"),
    Option("paths that are s3:// or hf://", ("s3fs", "huggingface_hub"), "pip install 'logtrain[remote]'"),
    Option("recipes of other trainers in YAML", ("yaml",), "pip install 'logtrain[yaml]'"),
    Option("--track", ("tensorboard", "wandb", "mlflow", "trackio"), "pip install 'logtrain[track]'"),
    Option("inputs in .parquet", ("pyarrow",), "pip install 'logtrain[parquet]'"),
    Option(
        "packing and masking in C++",
        ("logtrain._pack", "logtrain._twins"),
        "install a C++ compiler, then pip install --force-reinstall logtrain",
    ),
)


def is_there(module: str) -> bool:
    """Whether a module could be imported; nothing is."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # what it is in is not there
        return False


def versions() -> dict[str, str]:
    """The versions of what a step depends on, by name."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["nccl"] = ".".join(map(str, nccl.version())) if torch.cuda.is_available() else "none"
    return found


def missing(on_gpus: bool, is_there: Callable[[str], bool] = is_there) -> dict[str, str]:
    """What is not installed: the option, and what installs it."""
    found = {}
    for option in OPTIONS:
        if (on_gpus or not option.on_gpus) and (gone := [name for name in option.modules if not is_there(name)]):
            what = f" ({', '.join(gone)})" if len(option.modules) > 1 else ""
            found[option.name] = f"{option.remedy}{what}"
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        found["compile, and Triton's kernels"] = "install a C compiler (apt-get install gcc)"
    return found
