"""JSON of others: what is honest is read as it is, all else is refused in one line that names the file."""

import json
import os
import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pytest

from logtrain.core.untrusted import checked, open_regular, read_json


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON (Expecting value"),
        (b"{", "not JSON ("),
        (b"\xff\xfe{}", "not JSON ('utf-8' codec can't decode"),
        (b"[1]", "expected a map, found an array"),
        (b"null", "expected a map, found null"),
        (b'{"a":' + b"[" * 100_000, "arrays and objects within each other too deep to be a map"),
        (b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", "arrays and objects within each other too deep to be a map"),
        (b'{"a":' + b"1" * 100_000 + b"}", "not JSON (an integer of 100,000 digits)"),
        (rb'{"a":"\ud800"}', "not JSON ('utf-8' codec can't encode"),
        (rb'{"\uDFFF":{}}', "not JSON ('utf-8' codec can't encode"),
        (rb'{"a":[{"b":"\ude00\ud83d"}]}', "not JSON ('utf-8' codec can't encode"),
        (b'{"a":"' + b"x" * 1_000_000 + b'"}', "1,000,008 bytes, more than the 300,000 that such a file may have"),
    ],
)
def test_what_is_no_object_of_a_bounded_size(tmp_path, content, message):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{file}: {message}")) as error:
        read_json(file, what="a map", max_bytes=300_000)
    assert len(str(error.value).splitlines()) == 1


def test_pairs_of_surrogates_are_text(tmp_path):
    (tmp_path / "a.json").write_bytes(rb'{"a":"\ud83d\ude00 \\ud800"}')
    assert read_json(tmp_path / "a.json") == {"a": "\U0001f600 \\ud800"}


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "none", "no such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),  # it would wait for a writer
        (Path("/dev/zero"), "not a regular file"),
        (Path("a\0b"), "embedded null byte"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{path}: {what}")):
            open_regular(path)


class Inner(TypedDict):
    count: int
    text: NotRequired[str]


class Outer(TypedDict):
    inner: dict[str, Inner]
    free: dict[str, Any]
    id: int | None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("id",), "7", 'x.id = "7": expected an integer or null'),
        (("id",), True, "x.id = true: expected an integer or null"),
        (("id",), ..., "x.id: missing"),
        (("other",), 1, "x.other: has no meaning there"),
        (("inner",), [], "x.inner = []: expected an object"),
        (("inner", "a"), 3, "x.inner.a: expected an object, found a number"),
        (("inner", "a", "count"), 1.0, "x.inner.a.count = 1.0: expected an integer"),
        (("inner", "a", "text"), None, "x.inner.a.text = null: expected a string"),
        (("free",), None, "x.free = null: expected an object"),
    ],
)
def test_types_of_entries(path, value, message):
    facts = {"inner": {"a": {"count": 1}}, "free": {"x": [1, {}]}, "id": None}
    assert checked("x", facts, Outer) == facts
    facts = json.loads(json.dumps(facts))
    place = facts
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    if value is ...:
        del place[path[-1]]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        checked("x", facts, Outer)
