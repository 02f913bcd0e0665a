"""Merges an adapter (PEFT's format) into its model.

    logtrain merge --adapter DIR --output DIR

W + s B A is computed in fp32 and rounded once. The result is read back, and its logits on fixed random tokens are
compared with those of model and adapter before the folder gets its name. Everything is computed on the CPU in fp32, so
a model of 8B parameters takes 33 GB.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.core.kinds import Config
from logtrain.core.location import MODEL, OUTPUT
from logtrain.core.still import Still


@dataclass(frozen=True, kw_only=True)
class MergeConfig(Config):
    """Merge an adapter in PEFT's format into its model: LoRA, or by PEFT itself what else it merges."""

    adapter: Annotated[str, MODEL]
    """Folder of the adapter, with adapter_config.json and adapter_model.safetensors."""
    model: Annotated[str, MODEL] = ""
    """Hugging Face folder of the model. Without it: the one that the adapter names."""
    output: Annotated[str, OUTPUT]
    """Folder to write, which must not exist."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the merged weights. auto: that of the export of the adapter's run, else bfloat16."""


def main(argv: list[str]) -> int:
    """Merge as the flags say; -> the exit status."""
    config = load(MergeConfig, argv)
    # After the flags: --help and a mistyped one need no torch.
    from logtrain.model.base import base_folder
    from logtrain.model.merging import merge_folders

    adapter = Path(config.adapter)
    model = Path(config.model) if config.model else base_folder(adapter)
    with Still():
        merged = merge_folders(model, adapter, Path(config.output), config.dtype)
    differ = f"logits differ by {merged.difference:.1e} of the largest from model and adapter"
    print(f"{config.output} ({merged.dtype}): {differ}")
    for line in merged.odd:
        print(line)
    return 0


if __name__ == "__main__":
    run(main)
