"""The tensors of a checkpoint on disk: a safetensors file for each rank, with the rows that the rank owned.

    rank-00003.safetensors    rows of each tensor; under __metadata__ the number of the first of them in the tensor

Any rank of a later run reads the rows that it owns itself, whatever the number of ranks. A file is written tensor by
tensor, and its checksum is taken on the way, so that no copy in memory and no second reading is needed.
"""

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from logtrain.core import units
from logtrain.core.atomic import naming
from logtrain.core.checksums import FileFacts
from logtrain.core.untrusted import checked

CHUNK = 1 << 24  # bytes that are written at a time
DTYPE = "F32"  # of masters and moments
FIRST_ROWS = "first_rows"
MOMENT = "optimizer."  # what the name of a tensor begins with that is a moment: optimizer.exp_avg.head.weight


@dataclass(frozen=True)
class TensorRows:
    """Successive rows of a tensor, in host memory."""

    first: int
    """Number of the first of them in the whole tensor."""
    tensor: Tensor
    """The rows, fp32."""


def write_tensors(file: Path, tensors: Mapping[str, TensorRows], note: Callable[[str], None]) -> FileFacts:
    """Write the rows to `file`, synchronised to the disk; -> its size and checksum. `note`: a function that is called
    with each piece of work, in words. Raises OSError.
    """
    header: dict[str, object] = {
        "__metadata__": {"format": "pt", FIRST_ROWS: json.dumps({name: rows.first for name, rows in tensors.items()})}
    }
    end = 0
    for name, rows in tensors.items():
        begin, end = end, end + rows.tensor.nbytes
        shape = list(rows.tensor.shape)
        assert rows.tensor.dtype == torch.float32, name
        header[name] = {"dtype": DTYPE, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    size, crc, began = 0, 0, time.monotonic()
    with naming(file), open(file, "wb", buffering=0) as stream:
        for part in (len(text).to_bytes(8, "little"), text, *(as_bytes(rows.tensor) for rows in tensors.values())):
            note(f"checkpoint, {units.size(size)} at {units.rate(size, began)}, {file.name}")
            for at in range(0, len(part), CHUNK):
                chunk = memoryview(part)[at : at + CHUNK]
                crc = zlib.crc32(chunk, crc)
                while chunk:
                    chunk = chunk[stream.write(chunk) :]
            size += len(part)
        os.fsync(stream.fileno())
    return FileFacts(size, crc)


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, of any shape and any dtype, in place if it is contiguous."""
    return tensor.contiguous().view(torch.uint8).reshape(-1).numpy().data


class TensorFiles:
    """The weights and moments of a checkpoint, as a `WeightSource`."""

    def __init__(self, folder: Path, names: list[str]):
        """Read the headers of the files. Raises ValueError for a file that `write_tensors` has not written."""
        self.folder = folder
        self.parts: dict[str, list[tuple[int, int, str]]] = {}  # tensor -> first row, row after the last, file
        self.shapes: dict[str, tuple[str, tuple[int, ...]]] = {}  # tensor -> dtype, sizes of the other dimensions
        self.files = {}
        for file in names:
            try:
                opened = self.files[file] = safe_open(folder / file, framework="pt")
                found = checked(FIRST_ROWS, json.loads(opened.metadata()[FIRST_ROWS]), dict[str, int])
                for name in opened.keys():  # noqa: SIM118 (no dictionary)
                    rows = opened.get_slice(name)
                    size, *others = rows.get_shape()
                    self.parts.setdefault(name, []).append((found[name], found[name] + size, file))
                    kind = rows.get_dtype(), tuple(others)
                    if self.shapes.setdefault(name, kind) != kind:
                        raise ValueError(f"{name} is {self.shapes[name]} in another file")
            except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                raise ValueError(f"{file}: not written by a save ({error})") from None
        for parts in self.parts.values():
            parts.sort()

    @property
    def moments(self) -> list[str]:
        """Which moments the files hold, of any parameter."""
        return sorted({name.split(".")[1] for name in self.parts if name.startswith(MOMENT)})

    def check(self, expected: Mapping[str, torch.Size]) -> None:
        """Raises ValueError unless the files hold exactly these tensors, whole, in fp32 and in these shapes."""
        if others := expected.keys() ^ self.parts.keys():
            name = sorted(others)[0]
            raise ValueError(f"it has {'no' if name in expected else 'an unexpected'} tensor {name}")
        for name, shape in expected.items():
            kind, others = self.shapes[name]
            end = 0
            for first, after, _ in self.parts[name]:
                if first != end:
                    raise ValueError(f"{name}: rows {end} to {first} are missing or there twice")
                end = after
            if (end, *others) != tuple(shape) or kind != DTYPE:
                raise ValueError(f"{name} is {kind} {[end, *others]}, the model has {DTYPE} {list(shape)}")

    def let_go(self) -> None:
        """Give back the memory that the mapped files take in this process: what has been read would stay in it."""
        self.files = {file: safe_open(self.folder / file, framework="pt") for file in self.files}

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        """Rows [start, stop) of a tensor, in pieces and in order."""
        for first, after, file in self.parts[name]:
            if start < after and first < stop:
                yield self.files[file].get_slice(name)[max(start, first) - first : min(stop, after) - first]
