"""A trained model into a Hugging Face folder, read back and compared with the live one before anyone relies on it; and
its adapters alone, in PEFT's format.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import orjson
from torch import Tensor

from logtrain.core.atomic import aside_of, new_folder, write_file
from logtrain.core.checksums import write_checksums
from logtrain.core.shared_folder import listing, wait_until_seen
from logtrain.core.world import World
from logtrain.model import hf, peft
from logtrain.model.llama import Llama
from logtrain.model.lora import merged
from logtrain.text import template_source
from logtrain.training.run_data import ChatStyle
from logtrain.training.setup import RunSetup
from logtrain.training.sharding import full_tensors
from logtrain.training.step import mean_loss

TOLERANCE = 1e-2  # relative; rounding to bf16 moves a loss by about 1e-4, a wrong tensor by more than this


class ExportResult(NamedTuple):
    """Loss per target in nats on a fixed batch: of the live model, and of what was read back."""

    live_loss: float
    exported_loss: float
    dtype: str

    @property
    def difference(self) -> float:
        return self.exported_loss - self.live_loss

    def __str__(self) -> str:
        return (
            f"({self.dtype}): loss {self.exported_loss:.6f} read back, {self.live_loss:.6f} live, "
            f"difference {self.difference:+.1e}"
        )

    def to_json(self) -> dict:
        losses = {"live_loss": self.live_loss, "exported_loss": self.exported_loss}
        return {**losses, "difference": self.difference, "dtype": self.dtype}


def publish_model(folder: Path, model: Llama, run: RunSetup) -> ExportResult:
    """Write the model aside, read it back, compare the two, and only then name the folder; the result is written to
    `<folder>.json` beside it, too. An older `folder` gives way.

    Every rank calls it. Adapters are merged. Raises ValueError if the losses on the first rows of `run.data.check`
    differ by more than TOLERANCE.
    """
    world, data, dtype = run.world, run.data, run.export_dtype
    tensors = full_tensors(model)
    if run.config.lora.rank:
        tensors = merged(tensors, run.shape, run.config.lora)
    tensors = in_step(tensors, world)
    with new_folder(folder, replace=True) if world.is_main else nullcontext(aside_of(folder)) as aside:
        if world.is_main:
            source, files = Path(run.config.model), data.tokenizer.files
            hf.save(aside, run.shape, tensors, dtype, source=source, tokenizer_files=files)
            write_chat_style(aside, data.chat, configs=aside)
            write_checksums(aside, world.note)
        else:
            for _ in tensors:  # gathering takes every rank
                pass
        wait_until_seen(aside, world.from_main(listing(aside) if world.is_main else None), world.note)
        live, _ = mean_loss(model, data.check, 1, world)
        read_back = run.build_model(hf.Weights(aside, hf.read_config(aside)), adapters=False)
        world.barrier()  # disks differ; NCCL's clock must not start before all have read
        exported, _ = mean_loss(read_back, data.check, 1, world)
        if not abs(exported - live) <= TOLERANCE * abs(live):
            raise ValueError(
                f"{folder}: reads back with loss {exported:.6f}, the live model has {live:.6f}: not exported"
            )
        world.barrier()  # rank 0 renames what the others have read
        result = ExportResult(live, exported, str(dtype).removeprefix("torch."))
        if world.is_main:  # before the folder has its name: a command that is killed in between can be given again
            report = folder.with_name(f"{folder.name}.json")
            write_file(report, orjson.dumps(result.to_json(), option=orjson.OPT_INDENT_2))
    return result


def publish_adapter(folder: Path, model: Llama, run: RunSetup) -> None:
    """Write the model's adapters alone. Every rank calls it: all gather, rank 0 writes. An older `folder` gives way."""
    trained = {name: whole for name, whole in full_tensors(model) if "lora_" in name}
    if run.world.is_main:
        source = Path(run.config.model)
        with new_folder(folder, replace=True) as aside:
            peft.save(aside, trained, run.shape, run.config.lora, str(source))
            write_chat_style(aside, run.data.chat, configs=source)
            write_checksums(aside)
    run.world.barrier()


def write_chat_style(folder: Path, chat: ChatStyle | None, *, configs: Path) -> None:
    """Let whoever loads the folder, an export or an adapter, write prompts with the template of the training data,
    whatever the tokenizer's own is, and stop where an answer ends: chats may have taught an end that the model did not
    know before. `configs`: the folder of the model's config.json and generation_config.json.
    """
    if chat is None:
        return
    (folder / template_source.FILE).write_text(chat.template, encoding="utf-8")
    generation = configs / "generation_config.json"
    ends = hf.end_ids(generation, configs / "config.json")
    if chat.end_id not in ends:
        known = hf.read_json(generation) if generation.exists() else {}
        content = orjson.dumps(known | {"eos_token_id": [*ends, chat.end_id]}, option=orjson.OPT_INDENT_2)
        (folder / generation.name).write_bytes(content)


def in_step(tensors: Iterable[tuple[str, Tensor]], world: World) -> Iterator[tuple[str, Tensor]]:
    """No rank gathers the next tensor before rank 0 has dealt with this one: queued all at once on a GPU, gatherings
    that wait for a slow disk time out (NCCL: 10 minutes).
    """
    for name, tensor in tensors:
        world.note(f"writing {name}")
        yield name, tensor
        world.barrier()
