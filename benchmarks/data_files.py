"""The same rows as files of every format that prepare reads, packed in every way that it unpacks: for data.py."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import zstandard

from logtrain.data.config import PrepareConfig
from logtrain.data.documents import Document, documents
from logtrain.data.files import InputFile

Row = dict[str, Any]


def json_array(file: TextIO, rows: Iterable[Row]) -> None:
    """One array, an object a line."""
    for number, row in enumerate(rows):
        file.write((",\n" if number else "[") + json.dumps(row))
    file.write("]")


def json_lines(file: TextIO, rows: Iterable[Row]) -> None:
    """An object a line."""
    for row in rows:
        file.write(json.dumps(row) + "\n")


def csv_table(separator: str) -> Callable[[TextIO, Iterable[Row]], None]:
    """A table of text, of the columns of the first row."""

    def write(file: TextIO, rows: Iterable[Row]) -> None:
        rows = iter(rows)
        first = next(rows)
        table = csv.DictWriter(file, list(first), delimiter=separator)
        table.writeheader()
        table.writerow(first)
        table.writerows(rows)

    return write


def text(file: TextIO, rows: Iterable[Row]) -> None:
    """The values of the rows below one another."""
    for row in rows:
        file.write("\n".join(str(value) for value in row.values()) + "\n")


def parquet(file: BinaryIO, rows: Iterable[Row]) -> None:
    """A table as pandas writes it: one row group for a million rows."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)


def arrow(compression: str | None) -> Callable[[BinaryIO, Iterable[Row]], None]:
    """A table in Arrow's own format; with "lz4" as pandas writes .feather."""

    def write(file: BinaryIO, rows: Iterable[Row]) -> None:
        table = pyarrow.Table.from_pylist(list(rows))
        pyarrow.feather.write_feather(table, file, compression=compression or "uncompressed")

    return write


AS_TEXT: dict[str, Callable[[TextIO, Iterable[Row]], None]] = {
    "json": json_array,
    "jsonl": json_lines,
    "csv": csv_table(","),
    "tsv": csv_table("\t"),
    "txt": text,
}
AS_TABLE: dict[str, Callable[[BinaryIO, Iterable[Row]], None]] = {
    "parquet": parquet,
    "arrow": arrow(None),
    "feather": arrow("lz4"),
}
PACKED: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
    "gz": lambda path: gzip.open(path, "wb", compresslevel=6),  # noqa: SIM115
    "zst": lambda path: zstandard.open(path, "wb"),
    "xz": lambda path: lzma.open(path, "wb", preset=1),  # noqa: SIM115
    "bz2": lambda path: bz2.open(path, "wb"),  # noqa: SIM115
}
NAMES = [f"{kind}{packing}" for kind in (*AS_TEXT, *AS_TABLE) for packing in ("", ".gz", ".zst", ".xz", ".bz2", ".zip")]
"""Every format, plain and packed: jsonl, jsonl.gz, jsonl.zip, ..."""


def write(folder: Path, name: str, rows: Iterable[Row]) -> Path:
    """A file of the rows. `name`: of NAMES."""
    kind, _, packing = name.partition(".")
    path = folder / f"rows.{kind}"
    with open(path, "wb") as file:
        write_kind(file, kind, rows)
    if not packing:
        return path
    packed = folder / (f"rows.{packing}" if packing == "zip" else f"rows.{name}")
    if packing == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, path.name)
    else:
        with open(path, "rb") as source, PACKED[packing](packed) as file:
            while block := source.read(1 << 20):
                file.write(block)
    path.unlink()
    return packed


def write_kind(file: BinaryIO, kind: str, rows: Iterable[Row]) -> None:
    """The rows in a format, unpacked."""
    if kind in AS_TABLE:
        AS_TABLE[kind](file, rows)
        return
    text_file = io.TextIOWrapper(file, encoding="utf-8", newline="")
    AS_TEXT[kind](text_file, rows)
    text_file.flush()
    text_file.detach()


def texts_of(file: Path) -> Iterator[str]:
    """The texts of the documents that prepare makes of a file. Raises ValueError for a bad row."""
    for document in documents(InputFile(file), "auto", PrepareConfig.text_chars):
        if not isinstance(document, Document):
            raise ValueError(f"{file} row {document.row}: {document}")
        yield document.text
