"""An adapter into its model: `python -m logtrain.merge --model DIR --adapter DIR --output DIR`.

W + s B A is computed in fp32 and rounded once. The result is read back, and its logits on fixed random tokens are held
against those of model and adapter before the folder gets its name. All on the CPU, in fp32: 8B parameters take 33 GB.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from logtrain.core.config import load, run
from logtrain.model import hf
from logtrain.model import peft as adapter
from logtrain.model.llama import Llama
from logtrain.model.lora import adapt, merged
from logtrain.text import chat_template
from logtrain.text.tokenizer import Tokenizer
from logtrain.training.sharding import materialize

CPU = torch.device("cpu")
TOKENS = 256  # for the comparison
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the largest logit; rounding W to bf16 moves them by 1%


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Merge a LoRA adapter in PEFT's format into its model."""

    model: str
    """Hugging Face folder of the model."""
    adapter: str
    """Folder of the adapter: adapter_config.json, adapter_model.safetensors."""
    output: str
    """Folder to write; must not exist."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the merged weights."""


def main(argv: list[str]) -> int:
    config = load(MergeConfig, argv)
    source, output, dtype = Path(config.model), Path(config.output), getattr(torch, config.dtype)
    if output.exists():
        raise ValueError(f"{output}: exists already; choose another --output")
    shape = hf.read_config(source)
    lora, tensors = adapter.read(Path(config.adapter), shape)
    weights = hf.Weights(source, shape)
    with torch.device("meta"):
        adapted = Llama(shape)
    adapt(adapted, lora, torch.float32)

    def rows(name: str, start: int, stop: int) -> list[Tensor]:
        return [tensors[name][start:stop]] if name in tensors else list(weights.rows(name, start, stop))

    materialize(adapted, CPU, rows)
    aside = output.with_name(f".{output.name}.partial")
    named = ((name, parameter.detach()) for name, parameter in adapted.named_parameters())
    files = Tokenizer.load(str(source)).files
    hf.save(aside, shape, merged(named, shape, lora), dtype, source=source, tokenizer_files=files)
    for name in (chat_template.FILE, "generation_config.json"):  # with an adapter that has learned others
        if (Path(config.adapter) / name).exists():
            shutil.copy(Path(config.adapter) / name, aside)
    before = logits(adapted)
    del adapted
    with torch.device("meta"):
        plain = Llama(shape)
    materialize(plain, CPU, hf.Weights(aside, shape).rows)
    after = logits(plain)
    difference = ((after - before).abs().max() / before.abs().max()).item()
    if not difference <= TOLERANCE[dtype]:
        raise ValueError(
            f"{aside}: logits differ by {difference:.1e} of the largest from those of model and adapter, more than "
            f"{TOLERANCE[dtype]:.0e}; not given its name"
        )
    os.replace(aside, output)
    print(f"{output} ({config.dtype}): logits differ by {difference:.1e} of the largest from model and adapter")
    return 0


@torch.no_grad()
def logits(model: Llama) -> Tensor:
    """[TOKENS, V] on fixed random tokens."""
    tokens = torch.randint(model.config.vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(0))
    positions, bounds = torch.arange(TOKENS, dtype=torch.int32), torch.tensor([0, TOKENS], dtype=torch.int32)
    return model(tokens, None, positions, bounds, TOKENS)


if __name__ == "__main__":
    run(main)
