"""Writes a trained model as a Hugging Face folder, which is read back and compared with the live model, and its
adapters alone in PEFT's format.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from logtrain.core.atomic import aside_of, new_folder, write_file
from logtrain.core.checksums import foreign, write_checksums
from logtrain.core.config import dump
from logtrain.core.lineage import parent_of, write_lineage
from logtrain.core.origin import Origin, origin
from logtrain.core.run_folder import flatten
from logtrain.core.shared_folder import listing, wait_until_seen
from logtrain.core.units import rate, size
from logtrain.core.untrusted import read_json, sealed
from logtrain.core.world import World
from logtrain.model import hf, peft
from logtrain.model.base import read_base, write_base
from logtrain.model.card import DataLine, Score, write_card
from logtrain.model.llama import Llama
from logtrain.model.lora import GivenAdapters, merged
from logtrain.model.published import called, check_adapter, check_model, read_generation
from logtrain.model.weights import WeightSource
from logtrain.text import template_source
from logtrain.training.config import MAY_CHANGE, RunConfig
from logtrain.training.run_data import ChatStyle
from logtrain.training.setup import RunSetup
from logtrain.training.sharding import full_tensors
from logtrain.training.step import validate

NO_RECIPE = ("model", "data", "runs", "valid", "resume")  # folders of this machine, and how often a run was stopped
TOLERANCE = 1e-2  # relative; rounding to bf16 moves a loss by about 1e-4, a wrong tensor by more than this


class ExportResult(NamedTuple):
    """The comparison of an export with the live model: losses per target in nats, on one fixed batch."""

    live_loss: float
    """Loss of the model in memory."""
    exported_loss: float
    """Loss of the model that was read back."""
    dtype: str
    """Precision of the exported weights, by its name in torch."""
    odd: tuple[str, ...] = ()
    """What is odd about the files, in sentences."""

    @property
    def difference(self) -> float:
        """Loss of the export less that of the live model."""
        return self.exported_loss - self.live_loss

    def __str__(self) -> str:
        return (
            f"({self.dtype}): loss {self.exported_loss:.6f} read back, {self.live_loss:.6f} live, "
            f"difference {self.difference:+.1e}{''.join(f'; {line}' for line in self.odd)}"
        )

    def to_json(self) -> dict:
        """The content of export.json, which report, rehearsal, hub and lineage tell of."""
        losses = {"live_loss": self.live_loss, "exported_loss": self.exported_loss}
        return {**losses, "difference": self.difference, "dtype": self.dtype}

    def write(self, folder: Path, of: Origin) -> None:
        """Write `<folder>.json`, which is done before the folder has its name: a command that is killed in between can
        be given again. `of`: which run it is of, and whether it is of an export or an adapter.
        """
        report = folder.with_name(f"{folder.name}.json")
        write_file(report, sealed(self.to_json() | of))


def check_output(folder: Path) -> None:
    """Raises ValueError unless `publish_model` would replace nothing but an older export at `folder`, which is an
    absolute path, and at the `<folder>.json` beside it.
    """
    here = Path.cwd()
    if folder in (here, *here.parents):
        raise ValueError(f"{folder}: the working folder, or one above it; choose another folder")
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder}: not a folder; choose another name")
    if folder.is_dir() and (name := foreign(folder)):
        raise ValueError(f"{folder}: holds {name}, which no export has; choose another folder")
    report = folder.with_name(f"{folder.name}.json")
    if not os.path.lexists(report):
        return
    try:
        is_report = ExportResult._fields[0] in read_json(report)
    except ValueError:
        is_report = False
    if not is_report:
        raise ValueError(f"{report}: in the way of the export's report, and not written by an export; move it")


def publish_model(
    folder: Path, model: Llama, run: RunSetup, scores: Sequence[Score] = (), proven: Callable[[], None] | None = None
) -> ExportResult:
    """Write a model under another name, read it back, compare the two, and only then rename it to `folder`; an older
    `folder` is replaced. Adapters are merged. The result is also written to `<folder>.json` beside it. `scores`: of the
    model, for its card. `proven`: called once the files are found to be right, before they get their name.

    Every rank calls this. Raises ValueError as `compared` does, on the first step of `run.data.check`.
    """
    world, dtype = run.world, run.export_dtype
    tensors = full_tensors(model)
    if run.config.lora.rank:
        tensors = merged(tensors, run.shape, run.config.lora)
    tensors = in_step(tensors, world)
    with new_folder(folder, replace=True) if world.is_main else nullcontext(aside_of(folder)) as aside:
        if world.is_main:
            source, files = Path(run.config.model), run.data.tokenizer.files
            hf.save(aside, run.shape, tensors, dtype, source=source, tokenizer_files=files)
            write_chat_style(aside, run.data.chat, configs=aside)
            relation = "merge" if run.config.lora.rank else "finetune"
            about = {"data": data_lines(run), "recipe": recipe(run), "scores": scores}
            write_card(aside, run.config.name, relation, read_base(source), **about)
            write_origin(aside, run.config, world.note)
            write_checksums(aside, world.note)
        else:
            for _ in tensors:  # every rank takes part in the gathering
                pass
        wait_until_seen(aside, world.from_main(listing(aside) if world.is_main else None), world.note)
        result = compared(folder, model, hf.Weights(aside, hf.read_config(aside)), run, adapters=False)
        if world.is_main:
            with called(aside, folder):
                odd = check_model(aside, trained_template=run.data.chat is not None)
            result = result._replace(odd=tuple(line.replace(str(aside), str(folder)) for line in odd))
        if proven is not None:
            proven()
        if world.is_main:
            result.write(folder, origin(run.folder, "export"))
    return result


def publish_adapter(
    folder: Path, model: Llama, run: RunSetup, proven: Callable[[], None] | None = None
) -> ExportResult:
    """Write the model's adapters alone, read them back beside its other weights, and compare as `publish_model` does;
    an older `folder` is replaced. Every rank calls this, and rank 0 writes.
    """
    world, source = run.world, Path(run.config.model)
    trained = {name: whole for name, whole in full_tensors(model) if "lora_" in name}
    with new_folder(folder, replace=True) if world.is_main else nullcontext(aside_of(folder)) as aside:
        if world.is_main:
            base, dtype = read_base(source), str(run.export_dtype).removeprefix("torch.")
            peft.save(aside, trained, run.shape, run.config.lora, str(source))
            for file in run.data.tokenizer.files:
                hf.copy(file, aside)
            hf.leave_one_template(aside)
            write_chat_style(aside, run.data.chat, configs=source)
            write_base(aside, folder, base, dtype)
            write_card(aside, run.config.name, "adapter", base, data=data_lines(run), recipe=recipe(run))
            write_origin(aside, run.config, world.note)
            with called(aside, folder):
                check_adapter(aside, source, run.shape, trained_template=run.data.chat is not None)
            write_checksums(aside)
        wait_until_seen(aside, world.from_main(listing(aside) if world.is_main else None), world.note)
        _, adapters = peft.read(aside, run.shape)
        result = compared(folder, model, GivenAdapters(run.initial_weights(), adapters), run, adapters=True)
        if proven is not None:
            proven()
        if world.is_main:
            result.write(folder, origin(run.folder, "adapter"))
    return result


def compared(folder: Path, model: Llama, source: WeightSource, run: RunSetup, *, adapters: bool) -> ExportResult:
    """The comparison of the model in memory with the one that `source` has, which will be named `folder`. Every rank
    calls this. Raises ValueError where the losses differ by more than TOLERANCE, as a share of the live one.
    """
    world = run.world
    live = validate(model, run.data.check, 1, world).loss
    read_back = run.build_model(source, adapters=adapters)
    world.barrier()  # disks differ; NCCL's clock must not start before all have read
    loss = validate(read_back, run.data.check, 1, world).loss
    if not abs(loss - live) <= TOLERANCE * abs(live):
        told = f"{folder}: reads back with loss {loss:.6f}, the live model has {live:.6f}: not exported"
        if run.config.lora.rank and not adapters:
            told += "; once merged, bfloat16 drops what adapters change by less than half of its steps: use the run's "
            told += "adapter/ as it is, and resume with export_merged = false"
        raise ValueError(told)
    world.barrier()  # rank 0 renames what the others have read
    return ExportResult(live, loss, "float32" if adapters else str(run.export_dtype).removeprefix("torch."))


def write_origin(folder: Path, config: RunConfig, note: Callable[[str], None]) -> None:
    """Write what an export or an adapter was made from: model, data, and the settings that the result depends on.
    `note` is told what comes next.
    """
    free = {*MAY_CHANGE, "model"}
    settings = {key: value for key, value in flatten(config).items() if not {key, key.partition(".")[0]} & free}
    data = (parent_of("data", path, note) for path in config.sources.values())
    write_lineage(folder, [parent_of("model", config.model, note), *data], settings)


def data_lines(run: RunSetup) -> list[DataLine]:
    """What a model card says of the training data, by source."""
    lines = []
    for split in run.data.sources.values():
        facts, name = split.manifest, ", ".join(Path(source["path"]).name for source in split.manifest["sources"])
        counts, kind = facts["splits"]["train"], "chats" if "chat" in facts else "documents"
        lines.append(DataLine(name, kind, counts["documents"], counts["tokens"], facts["fingerprint"]))
    return lines


def recipe(run: RunSetup) -> str:
    """The settings of a run, as a model card shows them: the same wherever it ran, and however often it was stopped."""
    return "\n".join(line for line in dump(run.config).splitlines() if line.split(" = ")[0] not in NO_RECIPE)


def write_chat_style(folder: Path, chat: ChatStyle | None, *, configs: Path) -> None:
    """Write the chat template of the training data into an export or an adapter, and the id that ends an answer into
    its generation_config.json: training on chats may have taught the model another end than it had. `configs`: the
    folder of the model's config.json and generation_config.json. `chat`: None writes nothing.
    """
    if chat is None:
        return
    (folder / template_source.FILE).write_text(chat.template, encoding="utf-8")
    hf.leave_one_template(folder)
    generation = configs / "generation_config.json"
    ends = hf.end_ids(generation, configs / "config.json")
    if chat.end_id not in ends:
        taught = {"eos_token_id": [*ends, chat.end_id]}
        hf.write_json(folder / generation.name, read_generation(generation) | taught)
        if folder == configs:  # a program that reads no other must not go on after an answer either
            hf.write_json(folder / "config.json", hf.read_json(folder / "config.json") | taught)


def in_step(tensors: Iterable[tuple[str, Tensor]], world: World) -> Iterator[tuple[str, Tensor]]:
    """The tensors, of which no rank gathers the next one before rank 0 has dealt with this one. If all gatherings were
    queued on a GPU at once, those that wait for a slow disk would time out (NCCL: 10 minutes).
    """
    began, total = time.monotonic(), 0
    for name, tensor in tensors:
        world.note(f"export, {size(total)} at {rate(total, began)}, {name}")
        yield name, tensor
        total += tensor.nbytes
        world.barrier()
