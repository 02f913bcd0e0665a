"""A log is read in whatever way it is packed and encoded, and what cannot be read is one line."""

import gzip
import os
import re
import tracemalloc
import zlib

import pytest
import zstandard

from logtrain.data import log as log_module
from logtrain.data.log import read_log
from tests.support.bombs import write_gzip, write_zstd
from tests.support.conversations import write_log


def test_a_log_is_read_as_it_is_packed_and_encoded(tmp_path):
    text = "é 1\n\n2\t\x1b[31m\n3\r4\n"
    for name, data in (
        ("app", text.encode()),
        ("app.log", b"\xef\xbb\xbf" + text.encode()),
        ("app.log.GZ", gzip.compress(text.encode())),
        ("a b.zst", zstandard.compress(text.encode())),
    ):
        (tmp_path / name).write_bytes(data)
        log = read_log(str(tmp_path / name))
        assert (log.lines, log.note, log.first) == (["é 1", "", "2\t\x1b[31m", "3\r4"], "", 1)
    (tmp_path / "latin.log").write_bytes(b"caf\xe9\r\n\xff\n3\r")
    log = read_log(str(tmp_path / "latin.log"))
    assert log.lines == ["caf\\xe9", "\\xff", "3\r"]
    assert log.note == r"1 line ends \r\n are read as \n; 2 bytes that are not UTF-8 are written as \xNN"


def test_a_packed_log_is_not_unpacked_as_a_whole(tmp_path):
    packer = zlib.compressobj(wbits=31)
    packed = b"".join(packer.compress(b"error " * 170_000 + b"\n") for _ in range(300)) + packer.flush()
    (tmp_path / "app.log.gz").write_bytes(packed)
    assert len(packed) < 1 << 20
    tracemalloc.start()
    try:
        assert len(read_log(str(tmp_path / "app.log.gz"), "2-3").lines) == 2
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


def test_lines_of_a_log(tmp_path, monkeypatch):
    path = str(write_log(tmp_path / "app.log", 10))
    for which, first, last in (("", 1, 10), ("3-5", 3, 5), ("4-4", 4, 4), ("9-", 9, 10), ("-2", 9, 10), ("-20", 1, 10)):
        log = read_log(path, which)
        assert log.first == first
        assert log.lines == [f"sshd[24499]: error {i}" for i in range(first, last + 1)]
    (tmp_path / "rotated.log").write_text(f"\0\0\n{(tmp_path / 'app.log').read_text()}")
    assert len(read_log(str(tmp_path / "rotated.log"), "-10").lines) == 10
    monkeypatch.setattr(log_module, "MAX_CHARS", 90)  # four lines
    assert len(read_log(path, "-4").lines) == len(read_log(path, "2-5").lines) == 4
    for which in ("", "2-6", "-5", "3-"):
        with pytest.raises(ValueError, match=r"app.log: more than 90 characters; choose lines, as 100-200, or -50"):
            read_log(path, which)


@pytest.mark.parametrize(
    ("name", "data", "which", "message"),
    [
        ("none.log", None, "", "none.log: no such file"),
        (".", None, "", ": a directory; name a file in it"),
        ("empty.log", b"", "", "empty.log: no line in it"),
        ("blank.log", b"\n \n", "", "blank.log: nothing but blanks in it"),
        ("core", b"ELF\0\0\n", "", "core: zero bytes, so no text"),
        ("cut.log.gz", gzip.compress(b"error " * 99, mtime=0)[:-9], "", "cut.log.gz: the compressed file is cut short"),
        ("no.log.gz", b"error", "", "no.log.gz: cannot be unpacked (Error -3 while decompressing data"),
        ("no.log.zst", b"error", "", "no.log.zst: "),
        ("app.log", b"1\n2\n", "3-", "app.log: no line in it at 3-"),
        ("app.log", b"1\n2\n", "2", "lines 2: expected as 100-200, 100- to the end, or -50"),
        ("app.log", b"1\n2\n", "-", "lines -: expected as"),
        ("app.log", b"1\n2\n", "0-1", "lines 0-1: no lines; they count from 1"),
        ("app.log", b"1\n2\n", "-0", "lines -0: no lines"),
        ("app.log", b"1\n2\n", "2-1", "lines 2-1: no lines"),
    ],
)
def test_a_log_that_cannot_be_read_is_one_line(tmp_path, name, data, which, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_log(str(tmp_path / name), which)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.log.gz", "a.log.zst"])
def test_a_bomb_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr(log_module, "MAX_ROW_MB", 1)
    path = tmp_path / name
    if name.endswith(".gz"):
        write_gzip(path, b"1\n2\n", b"x", 1 << 28)
    else:
        write_zstd(path, b"1\n2\n", b"x", 1 << 16)
    for which in ("", "3-", "-5"):
        with pytest.raises(ValueError, match=rf"{name}: no line end in 16,777,216 bytes$"):
            read_log(str(path), which)
    assert read_log(str(path), "1-2").lines == ["1", "2"]


def test_a_line_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "MAX_ROW_MB", 1)
    path = tmp_path / "a.log"
    path.write_text("1\n" + "2" * (1 << 21) + "\n3\n")
    with pytest.raises(ValueError, match=r"a line of more than 1 MB; choose lines without, as 100-200$"):
        read_log(str(path))
    assert read_log(str(path), "3-").lines == ["3"]


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.log")
    for path, message in (
        (tmp_path / "pipe.log", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("~nobody_of_this_name/a.log", "Could not determine home directory"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
            read_log(str(path))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_read(tmp_path, encoding):
    (tmp_path / "wide.log").write_bytes("disk error\r\nnetwork error\r\n".encode(encoding))
    assert read_log(str(tmp_path / "wide.log")).lines == ["disk error", "network error"]
