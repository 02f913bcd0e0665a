"""Publishes the blend of models as a model's folder: each rank writes files of its own, piece by piece."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
import torch

from logtrain.core.atomic import aside_of, new_folder
from logtrain.core.checksums import write_checksums
from logtrain.core.lineage import parent_of, write_lineage
from logtrain.core.shared_folder import wait_until_seen
from logtrain.core.world import World
from logtrain.model import hf
from logtrain.model.base import read_base
from logtrain.model.blending import ROLES, Blend, BlendedWeights, check_same_shape
from logtrain.model.card import write_card
from logtrain.model.published import called, check_model, check_source, read_tokenizer
from logtrain.model.streaming import write_weights
from logtrain.training.blend_input import BlendInput, check_tokenizers
from logtrain.training.publish import write_chat_style
from logtrain.training.run_data import ChatStyle

LIKE = {"interpolate": 1, "residual": 1}  # whose files the output gets: the trained, the instruct model


class Dress(NamedTuple):
    """What stands beside the weights of a blend."""

    model: Path
    """The folder of config.json, generation_config.json, tokenizer and template."""
    chat: ChatStyle | None
    """The style of chats, where that of the folder is not meant."""
    files: tuple[Path, ...]
    """The tokenizer's files."""


def dress_of(inputs: Sequence[BlendInput], blend: Blend, like: str) -> Dress:
    """What the blend gets beside its weights: of the folder `like`, or, without one, of the input that its kind gets
    the files of. Raises ValueError for tokenizers that differ, unless a folder was given, and for files of no use.
    """
    if like:
        folder, shape = Path(like), inputs[0].shape
        check_source(folder, shape)
        check_same_shape((inputs[0].name, f"--like {like}"), (shape, replace(hf.read_config(folder), tied=shape.tied)))
        return Dress(folder, None, read_tokenizer(folder, shape).files)
    check_tokenizers(inputs)
    chosen = inputs[LIKE.get(blend.kind, 0)]
    return Dress(chosen.model, chosen.chat_style(), chosen.tokenizer.files)


def dtype_of(inputs: Sequence[BlendInput], name: str) -> torch.dtype:
    """The dtype of that name; "auto": that of the inputs, and where they have several the one that holds all."""
    if name != "auto":
        return getattr(torch, name)
    return reduce(torch.promote_types, (each.dtype for each in inputs))


def publish_blend(
    output: Path,
    inputs: Sequence[BlendInput],
    blend: Blend,
    dress: Dress,
    dtype: torch.dtype,
    world: World,
    add: Callable[[Path], Mapping[str, Any]] = lambda aside: {},
) -> list[str]:
    """Write the blend to `output`, which must not exist, whole or not at all; -> what is odd about its files, in
    sentences. Every rank calls this. `add`: writes more files into the folder on rank 0 -> more settings to tell of.

    Raises ValueError for numbers that are not finite, and for files that would not load.
    """
    names, shape = [each.name for each in inputs], inputs[0].shape
    source = BlendedWeights(blend, [each.weights for each in inputs], shape, names)
    odd: list[str] = []
    with new_folder(output) if world.is_main else nullcontext(aside_of(output)) as aside:
        world.barrier()
        wait_until_seen(aside, {}, world.note)
        write_weights(aside, shape, source, dtype, part=(world.rank, world.size), note=world.note)
        world.barrier()
        if world.is_main:
            hf.save_files(aside, shape, dtype, source=dress.model, tokenizer_files=dress.files)
            write_chat_style(aside, dress.chat, configs=aside)
            settings = {**told(blend, inputs), "dtype": str(dtype).removeprefix("torch."), **add(aside)}
            bases = list({base.sha256: base for base in (read_base(each.model) for each in inputs)}.values())
            write_card(aside, output.name, "merge", bases[0], others=bases[1:], recipe=tomli_w.dumps(settings))
            write_lineage(aside, (parent_of("model", each.folder) for each in inputs), settings)
            with called(aside, output):
                odd = check_model(aside, trained_template=dress.chat is not None)
            write_checksums(aside, world.note)
        world.barrier()
    return [line.replace(str(aside), str(output)) for line in odd]


def told(blend: Blend, inputs: Sequence[BlendInput]) -> dict[str, Any]:
    """What was computed of which models, for card and lineage."""
    names = [each.name for each in inputs]
    if blend.kind in ROLES:
        return {"kind": blend.kind, "alpha": blend.alpha, **dict(zip(ROLES[blend.kind], names, strict=True))}
    return {"kind": blend.kind, "models": names, "weights": list(blend.factors(len(inputs)))}
