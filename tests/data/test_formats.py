"""Whatever the format and the packing of a file, its rows become the documents that they become as JSON lines."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from logtrain.data.conversations import conversations
from logtrain.data.documents import documents
from logtrain.data.inputs import Inputs

TRICKY = [
    'He said "no", then\nleft;\tand | more',
    "é 磁盘 \U0001f600",
    "  spaces  ",
    "a,b\r\nc",
    "007",
    "=1+1",
    "'",
    '""',
]
CHATS = [
    [("user", "why?\n"), ("assistant", text), ("user", f"and, {i}?"), ("assistant", 'because "so"')]
    for i, text in enumerate(TRICKY)
]
ROWS: dict[str, list[dict]] = {
    "corpus": [{"text": text, "domain": "HDFS", "id": i} for i, text in enumerate(TRICKY)],
    "nlplog": [{"instruction": f"{text}?", "log": text, "output": text, "domain": None} for text in TRICKY],
    "alpaca": [
        {"instruction": text, "input": "" if i % 2 else "x\n", "output": f"{i}"} for i, text in enumerate(TRICKY)
    ],
    "sharegpt": [
        {"conversations": [{"from": a, "value": b} for a, b in chat], "system": "Be brief."} for chat in CHATS
    ],
    "messages": [{"messages": [{"role": a, "content": b} for a, b in chat], "score": 0.5} for chat in CHATS],
}


def as_csv(rows: list[dict], separator: str) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(
        {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()} for row in rows
    )
    return stream.getvalue().encode()


def as_parquet(rows: list[dict]) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream, row_group_size=3)
    return stream.getvalue()


def as_arrow(rows: list[dict], make: Callable) -> bytes:
    stream, table = io.BytesIO(), pyarrow.Table.from_pylist(rows)
    with make(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return stream.getvalue()


def as_feather(rows: list[dict]) -> bytes:
    stream = io.BytesIO()
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), stream, compression="lz4")
    return stream.getvalue()


FORMATS: dict[str, tuple[str, Callable[[list[dict]], bytes]]] = {
    "lines": ("jsonl", lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    "crlf": ("jsonl", lambda rows: "\r\n".join(map(json.dumps, rows)).encode()),
    "utf-16": ("jsonl", lambda rows: "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode("utf-16")),
    "utf-16 without a mark": ("jsonl", lambda rows: "\n".join(map(json.dumps, rows)).encode("utf-16-be")),
    "array": ("json", lambda rows: json.dumps(rows, ensure_ascii=False).encode("utf-8-sig")),
    "pretty array": ("json", lambda rows: json.dumps(rows, indent=2).encode()),
    "pretty": ("json", lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows).encode()),
    "concatenated": ("json", lambda rows: "".join(map(json.dumps, rows)).encode()),
    "csv": ("csv", lambda rows: as_csv(rows, ",")),
    "semicolons": ("csv", lambda rows: as_csv(rows, ";")),
    "tsv": ("tsv", lambda rows: as_csv(rows, "\t")),
    "parquet": ("parquet", as_parquet),
    "arrow": ("arrow", lambda rows: as_arrow(rows, pyarrow.ipc.new_file)),
    "arrow stream": ("arrow", lambda rows: as_arrow(rows, pyarrow.ipc.new_stream)),
    "feather": ("feather", as_feather),
}
PACKINGS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def read(path: Path, format: str) -> list:
    """What the rows of a path become, their numbers left out."""
    (file,) = Inputs([str(path)], 64).files
    if format in ("sharegpt", "messages"):
        return [item._replace(row=0) for item in conversations(file, format)]
    return [item._replace(row=0) for item in documents(file, "auto", 1)]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_what_json_lines_give(tmp_path, rows, name):
    ending, make = FORMATS[name]
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, ROWS[rows])))
    expected = read(lines, rows)
    assert len(expected) == len(TRICKY)
    data = make(ROWS[rows])
    for packing, pack in PACKINGS.items():
        path = tmp_path / f"a.{ending}{packing}"
        path.write_bytes(pack(data))
        assert read(path, rows) == expected, packing
        archive = tmp_path / f"b{packing}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
            stream.writestr(f"folder/a.{ending}{packing}", pack(data))
        assert read(archive, rows) == expected, f"{packing} in a zip"
