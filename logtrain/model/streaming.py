"""The safetensors of a model's folder, written as their numbers come: memory does not grow with the model or with a
matrix, and several processes write a file each.

Where every byte goes is known beforehand, from the shape and the dtype. hf.py writes whole tensors that a run gathers.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from logtrain.core.atomic import naming
from logtrain.model import hf
from logtrain.model.hf_layout import published_tensors
from logtrain.model.llama import LlamaConfig
from logtrain.model.weights import WeightSource

NAMES = {dtype: name for name, dtype in hf.DTYPES.items()}


class Place(NamedTuple):
    """A published tensor, and where it is among our parameters."""

    name: str
    """Its published name."""
    shape: tuple[int, ...]
    """Its sizes."""
    parameter: str
    """Our parameter of which it is some rows."""
    first: int
    """The first of these rows."""


def places_of(shape: LlamaConfig) -> list[Place]:
    """The published tensors of a model, in the order in which they are stored."""
    found = []
    for parameter, tensors in published_tensors(shape).items():
        first = 0
        for name, sizes in tensors:
            found.append(Place(name, sizes, parameter, first))
            first += sizes[0]
    return found


def write_weights(
    folder: Path,
    shape: LlamaConfig,
    source: WeightSource,
    dtype: torch.dtype,
    *,
    part: tuple[int, int] = (0, 1),
    note: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the safetensors of a model into `folder`, in files of at most hf.FILE_BYTES, and the index of several.

    `source`: gives each parameter in pieces. `part`: (i, n) writes every n-th file from the i-th on, and the index
    where i is 0. `note` is told what comes next. Raises OSError where there is no room, ValueError for a number that
    the dtype does not hold, and what `source` raises.
    """
    file_of, places = hf.assign_files(shape, dtype), places_of(shape)
    files = list(dict.fromkeys(file_of.values()))
    for file in files[part[0] :: part[1]]:
        of_file = [place for place in places if file_of[place.name] == file]
        write_file(folder / file, of_file, source, dtype, note)
    if part[0] == 0 and len(files) > 1:
        total = dtype.itemsize * sum(math.prod(place.shape) for place in places)
        hf.write_json(folder / hf.INDEX, {"metadata": {"total_size": total}, "weight_map": file_of})


def write_file(
    file: Path, places: Sequence[Place], source: WeightSource, dtype: torch.dtype, note: Callable[[str], None]
) -> None:
    """Write one file of safetensors; the format is of huggingface/safetensors, "Format"."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for place in places:
        begin, end = end, end + dtype.itemsize * math.prod(place.shape)
        header[place.name] = {"dtype": NAMES[dtype], "shape": list(place.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with naming(file), open(file, "xb", buffering=0) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for place in places:
            note(f"writing {place.name}")
            for piece in source.rows(place.parameter, place.first, place.first + place.shape[0]):
                rounded = piece.to(dtype)
                if dtype == torch.float16 and not torch.equal(rounded.isfinite(), piece.isfinite()):
                    raise ValueError(f"{place.name}: has numbers above 65,504, which float16 ends at; use bfloat16")
                chunk = memoryview(rounded.contiguous().view(torch.uint8).reshape(-1).numpy().data)
                while chunk:
                    chunk = chunk[stream.write(chunk) :]
        assert stream.tell() == 8 + len(text) + end, f"{file}: the source gave other rows than its shape has"
        os.fsync(stream.fileno())
