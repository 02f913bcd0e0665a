"""A trained model into a Hugging Face folder, read back and compared with the live one before anyone relies on it."""

from collections.abc import Callable
from pathlib import Path

import orjson
import torch
from torch import nn

from logtrain import hf
from logtrain.data.loader import Loader
from logtrain.model import Llama
from logtrain.parallel import World, full_tensors, reshard

TOLERANCE = 1e-2  # relative; rounding to bf16 moves a loss by about 1e-4, a wrong tensor by more than this


def publish(
    folder: Path,
    model: Llama,
    *,
    dtype: torch.dtype,
    world: World,
    source: Path,
    tokenizer_files: tuple[Path, ...],
    read_back: Callable[[hf.Weights], Llama],
    check: Loader,
) -> dict:
    """Write `model` to `folder` and compare: -> {"live_loss", "exported_loss", "difference", "dtype"}, also in
    `<folder>.json` beside it.

    Every rank calls it. `source` is the folder of the model's config.json, `read_back` builds a model from the
    written weights, `check` gives the fixed batch (its first step). Raises ValueError if the two losses differ by
    more than TOLERANCE.
    """
    if world.is_main:
        hf.save(folder, model.config, full_tensors(model), dtype, source=source, tokenizer_files=tokenizer_files)
    else:
        for _ in full_tensors(model):  # gathering takes every rank
            pass
    torch.distributed.barrier(world.control)
    live = loss_on(model, check, world)
    exported = loss_on(read_back(hf.Weights(folder, hf.read_config(folder))), check, world)
    result = {
        "live_loss": live,
        "exported_loss": exported,
        "difference": exported - live,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if world.is_main:
        folder.with_name(f"{folder.name}.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    if not abs(exported - live) <= TOLERANCE * abs(live):
        raise ValueError(
            f"{folder}: reads back with loss {exported:.6f}, the live model has {live:.6f}: do not use this export"
        )
    return result


@torch.no_grad()
def loss_on(model: nn.Module, loader: Loader, world: World) -> float:
    """Mean loss per target over the loader's first step, over all ranks."""
    step = loader.at(0)
    summed = torch.zeros((), device=world.device)
    for batch in step.batches:
        summed += model(*batch.model_inputs(world.device))
    reshard(model)
    return world.sum(summed).item() / max(1, step.targets)
