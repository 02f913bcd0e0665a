"""The weights of a model before they are trained: all of them read once, and two layers as a model of their own.

A file with NaN in a late layer, or with zeros where it was not fetched to its end, has the right header: only reading
tells.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from logtrain.core.units import size
from logtrain.model import hf
from logtrain.model.base import CARD
from logtrain.model.llama import LlamaConfig
from logtrain.text.tokenizer import Tokenizer

LAYERS = 2  # with one the first would be the last, which FSDP treats in another way
PIECE = 1 << 26  # bytes that are read at a time
MAY_BE_ZERO = ("o_proj.weight", "down_proj.weight")  # in blocks that were added to a model, LLaMA Pro's
CONFIG = "config.json"


def slice_of(shape: LlamaConfig) -> LlamaConfig:
    """The shape with two layers."""
    return replace(shape, num_layers=min(LAYERS, shape.num_layers))


def check_all(weights: hf.Weights, part: tuple[int, int], note: Callable[[str], None]) -> str:
    """Read every tensor of this rank's `part`, (i, n) for every n-th from the i-th on; -> how much and how fast, in
    words. Raises ValueError, with file, tensor and row, where a number is not finite, and for a tensor of zeros alone.
    """
    tensors = [tensor for group in weights.published.values() for tensor in group][part[0] :: part[1]]
    began, total = time.perf_counter(), 0
    for tensor in tensors:
        note(f"reading {tensor.name}, {total:,} bytes so far")
        rows = weights.slice_of(tensor.name)
        count = rows.get_shape()[0]
        step = max(1, PIECE // max(1, 4 * torch.Size(tensor.shape[1:]).numel()))
        path = weights.folder / weights.file_of[weights.stored.get(tensor.name, tensor.name)]
        is_zero = not tensor.name.endswith(MAY_BE_ZERO)
        for at in range(0, count, step):
            piece = rows[at : at + step]
            total += piece.nbytes
            added = piece.sum(dtype=torch.float32)
            is_zero = is_zero and bool(added == 0) and not piece.any()
            if not added.isfinite() and not piece.isfinite().all():
                finite = piece.isfinite().flatten(1).all(1) if piece.dim() > 1 else piece.isfinite()
                raise ValueError(
                    f"{path}: {tensor.name} is not finite in row {at + int(finite.logical_not().nonzero()[0])}; "
                    f"fetch the file again"
                )
        if is_zero:
            raise ValueError(f"{path}: {tensor.name} has nothing but zeros; fetch the file again")
    seconds = max(time.perf_counter() - began, 1e-9)
    return f"all weights are finite: {size(total)} of {len(tensors)} tensors read at {size(total / seconds)}/s"


def write_slice(
    folder: Path, model: Path, shape: LlamaConfig, weights: hf.Weights | None, tokenizer: Tokenizer
) -> LlamaConfig:
    """Write the first two layers of a model, its embedding and its head as a model folder; -> its shape. `weights`:
    None writes none, for a run that starts from random ones. Raises ValueError where there is no room.
    """
    small = slice_of(shape)
    if weights is None:
        folder.mkdir(parents=True)
        hf.write_json(folder / CONFIG, hf.read_json(model / CONFIG))
        for file in tokenizer.files:
            hf.copy(file, folder)
    else:
        hf.save(
            folder, small, first_layers(small, weights), widest(weights), source=model, tokenizer_files=tokenizer.files
        )
    if os.path.lexists(model / CARD):
        hf.copy(model / CARD, folder)
    raw = hf.read_json(folder / CONFIG)
    hf.write_json(folder / CONFIG, raw | {"num_hidden_layers": small.num_layers})
    return small


def first_layers(small: LlamaConfig, weights: hf.Weights) -> Iterator[tuple[str, Tensor]]:
    """(our name, whole tensor) of the parameters of the slice."""
    for name, parts in hf.published_tensors(small).items():
        yield name, torch.cat(list(weights.rows(name, 0, sum(part.shape[0] for part in parts))))


def widest(weights: hf.Weights) -> torch.dtype:
    """The dtype of the stored weights; of several the widest."""
    named = (part.name for parts in weights.published.values() for part in parts)
    return max((hf.DTYPES[weights.slice_of(name).get_dtype()] for name in named), key=lambda dtype: dtype.itemsize)
