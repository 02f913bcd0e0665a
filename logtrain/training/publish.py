"""A trained model into a Hugging Face folder, read back and compared with the live one before anyone relies on it."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import orjson
import torch
from torch import Tensor, nn

from logtrain.data.loader import Loader
from logtrain.model import hf
from logtrain.model.llama import Llama
from logtrain.text import chat_template
from logtrain.training.sharding import World, reshard

TOLERANCE = 1e-2  # relative; rounding to bf16 moves a loss by about 1e-4, a wrong tensor by more than this


def publish(
    folder: Path,
    model: Llama,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype,
    world: World,
    source: Path,
    tokenizer_files: tuple[Path, ...],
    read_back: Callable[[hf.Weights], Llama],
    check: Loader,
    chat: tuple[str, int] | None = None,
) -> dict:
    """Write `tensors` aside, read them back, compare the model they are with the live one, and only then name the
    folder: -> {"live_loss", "exported_loss", "difference", "dtype"}, also in `<folder>.json` beside it. An older
    `folder` gives way.

    Every rank calls it. `tensors`: the model's own, whole, its adapters merged; `source`: the folder of its
    config.json; `read_back` builds a model from the written weights; `check` gives the fixed batch (its first step);
    `chat`: the template and the token that ends an answer, of a model that was trained on chats.
    Raises ValueError if the two losses differ by more than TOLERANCE.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    if world.is_main:
        shutil.rmtree(aside, ignore_errors=True)
        hf.save(aside, model.config, in_step(tensors, world), dtype, source=source, tokenizer_files=tokenizer_files)
        if chat:
            answer_as_trained(aside, *chat, of=aside)
    else:
        for _ in in_step(tensors, world):  # gathering takes every rank
            pass
    torch.distributed.barrier(world.control)
    live = loss_on(model, check, world)
    exported = loss_on(read_back(hf.Weights(aside, hf.read_config(aside))), check, world)
    result = {
        "live_loss": live,
        "exported_loss": exported,
        "difference": exported - live,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if not abs(exported - live) <= TOLERANCE * abs(live):
        raise ValueError(f"{aside}: reads back with loss {exported:.6f}, the live model has {live:.6f}: not exported")
    if world.is_main:
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
        folder.with_name(f"{folder.name}.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    return result


def answer_as_trained(folder: Path, template: str, end_id: int, *, of: Path) -> None:
    """Let whoever loads the folder, an export or an adapter, write prompts with the template of the training data,
    whatever the tokenizer's own is, and stop where an answer ends: chats may have taught an end that the model did not
    know before. `of`: the folder of the model's configs.
    """
    (folder / chat_template.FILE).write_text(template, encoding="utf-8")
    generation = of / "generation_config.json"
    ends = hf.end_ids(generation, of / "config.json")
    if end_id not in ends:
        config = (hf.read_json(generation) if generation.exists() else {}) | {"eos_token_id": [*ends, end_id]}
        (folder / generation.name).write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))


def in_step(tensors: Iterable[tuple[str, Tensor]], world: World) -> Iterator[tuple[str, Tensor]]:
    """No rank gathers the next tensor before rank 0 has dealt with this one: queued all at once on a GPU, gatherings
    that wait for a slow disk time out (NCCL: 10 minutes).
    """
    for tensor in tensors:
        yield tensor
        torch.distributed.barrier(world.control)


@torch.no_grad()
def loss_on(model: nn.Module, loader: Loader, world: World) -> float:
    """Mean loss per target over the loader's first step, over all ranks."""
    step = loader.at(0)
    summed = torch.zeros((), device=world.device)
    for batch in step.batches:
        summed += model(*batch.model_inputs(world.device))
    reshard(model)
    return world.sum(summed).item() / max(1, step.targets)
