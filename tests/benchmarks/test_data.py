"""The files that the data benchmark writes hold the same documents, whatever their format and packing."""

import os
import subprocess
import sys

import pytest

from benchmarks.data import repeated, resident_bytes
from benchmarks.data_files import NAMES, write
from logtrain.data.config import PrepareConfig
from logtrain.data.documents import Document, documents
from logtrain.data.inputs import Inputs

ROWS = [
    {"instruction": 'Does "failed" mean,\r\nso?', "input": "", "output": "sshd[7]: Failed password\n\tfrom 10.0.0.1"},
    {"instruction": "Count é and 日志; a, b", "input": "a\tb;c|d", "output": "\\n is no line end, 'and' \" one quote"},
]  # fmt: skip


def texts(folder, name: str, rows) -> list[str]:
    """The documents that prepare makes of a file, and none of them bad."""
    files = Inputs([str(write(folder, name, rows))], max_row_mb=1).files
    found = [each for file in files for each in documents(file, "auto", PrepareConfig.text_chars)]
    assert all(isinstance(each, Document) for each in found), found
    return [each.text for each in found]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("txt")])
def test_a_table_is_the_same_in_every_format(tmp_path, name):
    expected = texts(tmp_path, "jsonl", repeated(ROWS, 0.01))
    assert len(expected) > 50
    assert texts(tmp_path, name, repeated(ROWS, 0.01)) == expected


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("txt")])
def test_a_text_is_the_same_packed_or_not_and_as_json_lines_of_its_documents(tmp_path, name):
    rows = list(repeated(ROWS, 0.1))
    expected = "".join("\n".join(row.values()) + "\n" for row in rows)
    found = texts(tmp_path, name, rows)
    assert len(found) > 1 and "".join(found) == expected
    assert texts(tmp_path, "jsonl", [{"text": text} for text in found]) == found


def test_the_memory_of_workers_counts_in_whatever_process_group_they_are():
    worker = "held = bytearray(50 << 20); held[::4096] = held[::4096]; print(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}], process_group=0)"
    before = resident_bytes(os.getpid())
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdin
        process.stdout.readline()
        assert 50 << 20 < resident_bytes(process.pid) < 120 << 20
        assert resident_bytes(os.getpid()) > before + (50 << 20)
        process.stdin.write(b"\n")
    assert resident_bytes(process.pid) == 0
