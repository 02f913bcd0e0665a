"""Which files are read, by their names, and that a file which changes meanwhile is noticed."""

from pathlib import Path

import pytest

from logtrain.data.files import InputFile


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("name", "stem", "is_text"),
    [
        ("a.json", "a", False),
        ("a.b.JSONL", "a.b", False),
        ("a.ndjson.gz", "a", False),
        ("Android_2k.log", "Android_2k", True),
        ("syslog.log.12.zst", "syslog", True),
        ("notes.txt", "notes", True),
        ("app.log-20240101", "app", True),
        ("app.log-20240101.gz", "app", True),
        ("app.log.2024-01-01.gz", "app", True),
        ("app.log.2024-01-01T10:00:00Z", "app", True),
        ("app.log.1.old", "app", True),
        ("app-2024-01-01.log.xz", "app-2024-01-01", True),
        ("syslog", "syslog", True),
        ("syslog.7.gz", "syslog", True),
        ("messages-20240101", "messages", True),
        ("access_log", "access_log", True),
        ("ssl_error_log-20240101.gz", "ssl_error_log", True),
        ("a.csv", "a", False),
        ("a.b.tsv.bz2", "a.b", False),
        ("a.parquet", "a", False),
        ("a.arrow.zst", "a", False),
    ],
)
def test_names(tmp_path, name, stem, is_text):
    file = InputFile(empty(tmp_path / name))
    assert (file.stem, file.kind.is_text) == (stem, is_text)


@pytest.mark.parametrize(
    "name", ["a.xlsx", "a.log.gzip", "a.json.1", "a.log.final", "a", "json", ".json", "syslog.conf"]
)
def test_other_names(tmp_path, name):
    with pytest.raises(ValueError, match=r": not named \.json, "):
        InputFile(empty(tmp_path / name))


def test_paths(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: no such file"):
        InputFile(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r": a directory; give the files in it, as in --input .*/\*\.json"):
        InputFile(tmp_path)
    with pytest.raises(ValueError, match="/dev/null: not a regular file"):
        InputFile("/dev/null")


def test_a_change_is_noticed(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(b"one\n")
    file = InputFile(path)
    assert not file.has_changed()
    with open(path, "ab") as stream:
        stream.write(b"two\n")
    assert file.has_changed()
