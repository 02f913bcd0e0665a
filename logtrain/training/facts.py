"""What a run says it is in its first lines: model, data, steps, machine, disk; and what is odd about them."""

from pathlib import Path
from shutil import disk_usage

import torch

from logtrain.core.units import size
from logtrain.data.loader import Loader
from logtrain.data.manifest import SplitFacts
from logtrain.data.prepared import read_manifest
from logtrain.model.llama import Llama
from logtrain.training.config import RunConfig
from logtrain.training.optim_config import LR_OF_ADAPTERS, LR_OF_PAIRS
from logtrain.training.rerun import places_in
from logtrain.training.setup import RunSetup

SMALL = 100_000_000  # parameters
FEWEST = 20  # steps of a run and of an epoch: with fewer the learning rate has no course, and a step is no sample


def what_it_is(run: RunSetup, model: Llama, total_steps: int) -> list[str]:
    """The first lines of a run. Every rank may call this."""
    config, train, world = run.config, run.data.train, run.world
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    on_gpu = world.device.type == "cuda"
    device = torch.cuda.get_device_name(world.device) if on_gpu else "rank without a GPU"
    rows = train.config.rows_per_step
    sources = of_sources(run)
    tokens, documents = (sum(facts[key] for facts in sources) for key in ("tokens", "documents"))
    sizes = train.sizes.values()  # at(0) would pack the first epoch, which a resumed run may not need
    a_row = sum(epoch.tokens for epoch in sizes) / sum(epoch.rows for epoch in sizes)
    adapters = f" (adapters of rank {config.lora.rank})" if config.lora.rank else ""
    how = f"{config.fp8.recipe} scaled float8" if config.precision == "fp8" else str(run.dtype).removeprefix("torch.")
    kernels = "attention " + config.attention_backend + ", Triton kernels" if on_gpu else "reference operations"
    more = [f"recompute {config.recompute}"] * (config.recompute != "none") + ["compiled"] * config.compile
    save, export = 12 * trained, run.shape.num_parameters * run.export_dtype.itemsize
    names = ", ".join(run.data.valid) or "nothing"
    lines = [
        f"model: {Path(config.model).name}, {run.shape.num_parameters:,} parameters, {trained:,} trained{adapters}",
        f"data: {documents:,} documents, {tokens:,} tokens in rows of {train.config.seq_len}; held out: {names}",
        f"steps: {total_steps:,} of {rows} rows, about {rows * a_row:,.0f} tokens each; "
        f"{total_steps / train.steps_per_epoch:.2f} epochs of {train.steps_per_epoch:,} steps",
        f"on: {world.size} x {device}, {how} products, float32 master weights, {', '.join([kernels, *more])}",
        f"disk: {size(save)} a checkpoint, {size(export)} the export, {size(disk_usage(run.folder).free)} free; "
        f"everything goes to {run.folder}",
    ]
    return lines + odd(train, total_steps) + odd_rate(config, run.shape.num_parameters)


def of_sources(run: RunSetup) -> list[SplitFacts]:
    """The counts of the training split of each source."""
    return [read_manifest(Path(folder))["splits"]["train"] for folder in run.config.sources.values()]


def odd(train: Loader, total_steps: int) -> list[str]:
    """What is odd about the number of steps, a line each."""
    rows, steps = train.config.rows_per_step, train.steps_per_epoch
    found = []
    if steps < FEWEST:
        most = max(1, rows * steps // FEWEST)
        found.append(f"warning: a step is 1/{steps} of an epoch; set loader.rows_per_step = {rows} to {most} or less")
    if total_steps < FEWEST:
        found.append(f"warning: only {total_steps} steps in all; raise trainer.epochs, or lower loader.rows_per_step")
    return found


def odd_rate(config: RunConfig, parameters: int) -> list[str]:
    """What is odd about the learning rate, a line where there is something: adapters take some ten times as much as all
    parameters, and pairs of answers far less than text. Small models take other rates, and nothing is said of theirs.
    """
    lr, on_pairs = config.optim.lr, config.trains_on == "pairs"
    of_all, of_adapters = (LR_OF_PAIRS / 10, LR_OF_PAIRS) if on_pairs else (1e-5, LR_OF_ADAPTERS)
    usual = of_adapters if config.lora.rank else of_all
    if parameters < SMALL or config.init == "random":
        return []
    if on_pairs and lr > 10 * usual:
        return [f"warning: optim.lr = {lr:g} is one for text and chats; pairs of answers take about {usual:g}"]
    if not config.lora.rank and lr >= of_adapters:
        what = "is one for adapters, and all parameters are trained"
        return [f"warning: optim.lr = {lr:g} {what}; about {usual:g} is usual"]
    if config.lora.rank and lr <= of_adapters / 10:
        return [f"warning: optim.lr = {lr:g} is one for all parameters; adapters take about {usual:g}"]
    return []


def shown(run: RunSetup, count: int) -> list[str]:
    """The first documents of the first step as they are trained, with what is predicted between « and »."""
    lines = []
    places = places_in(run.data.train, 0) if count else []  # which packs the first epoch
    for place in places[:count]:
        stored = place.split.read(place.document, place.first, place.first + place.length).tolist()
        text, is_target = "", False
        for at, token in enumerate(stored):
            now = at > 0 and token < 1 << 31
            if now != is_target:
                text, is_target = text + ("«" if now else "»"), now
            text += run.data.tokenizer.decode([token & 0x7FFFFFFF], skip_special=False)
        file, row, _ = place.split.origin(place.document)
        lines.append(f"{file}:{row}, {len(stored)} tokens:\n{text}{'»' * is_target}")
    return lines
