"""Files that others may have written: what is read of them, and what is refused, in one line."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import pytest

from logtrain.core.untrusted import (
    MAX_DEPTH,
    OtherFields,
    checked,
    from_json,
    read_bytes,
    read_json,
    read_own,
    read_sealed,
    sealed,
)


@dataclass(frozen=True)
class Part:
    name: str
    size: float | None


@dataclass(frozen=True)
class Facts:
    step: int
    parts: list[Part]
    by_name: dict[str, int]


FACTS = Facts(3, [Part("a", 1.5), Part("b", None)], {"x": 1})


def write(folder: Path, content: bytes | str) -> Path:
    file = folder / "facts.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_json_is_read(tmp_path):
    assert read_json(write(tmp_path, '{"a": [1, 2.5, null, "é"]}')) == {"a": [1, 2.5, None, "é"]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        ("[1]", "expected a thing, found an array"),
        ('"text"', "expected a thing, found a string"),
        ("null", "expected a thing, found null"),
        (f'{{"a": {"9" * 41}}}', "an integer of 41 digits"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "too deep to be a thing"),
        ('{"a": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", "too deep to be a thing"),
        ('{"a": "' + "x" * 1000 + '"}', "more than the 1,000 that such a file may have"),
    ],
)
def test_other_json_is_refused(tmp_path, content: bytes | str, why: str):
    file = write(tmp_path, content)
    limit = 1000 if "1,000" in why else 1 << 20
    with pytest.raises(ValueError, match=why) as error:
        read_json(file, what="a thing", max_bytes=limit)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


def test_a_file_as_deep_as_may_be(tmp_path):
    nested = read_json(write(tmp_path, '{"a": ' + "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2) + "}"))
    assert json.dumps(nested).count("[") == MAX_DEPTH - 2


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for name, why in (("none", "no such file"), ("", "not a regular file"), ("pipe", "not a regular file")):
        with pytest.raises(ValueError, match=why):
            read_bytes(tmp_path / name)


def test_a_dataclass_goes_through_json():
    assert from_json(Facts, json.loads(json.dumps(asdict(FACTS)))) == FACTS


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"step": True}, "step = true: expected an integer"),
        ({"step": 1.0}, r"step = 1.0: expected an integer"),
        ({"step": "3"}, 'step = "3": expected an integer'),
        ({"parts": {}}, "parts = {}: expected an array"),
        ({"parts": [{"name": "a"}]}, "expected name, size, found name"),
        ({"parts": [{"name": "a", "size": "b"}]}, "expected a number or null"),
        ({"by_name": {"x": "1"}}, r'by_name.x = "1": expected an integer'),
        ({"more": 1}, "expected step, parts, by_name, found step, parts, by_name, more"),
    ],
)
def test_a_field_of_another_type_is_named(change: dict, why: str):
    with pytest.raises(ValueError, match=why):
        from_json(Facts, asdict(FACTS) | change)


@pytest.mark.parametrize("key", ["a\nb", "\x1b[2J", "x" * 100_000])
def test_a_name_that_others_chose_is_shown_in_one_short_line(key: str):
    facts: dict[str, Any] = asdict(FACTS)
    for told in (facts | {key: 1}, {key: 1}):
        with pytest.raises(OtherFields) as error:
            from_json(Facts, told)
        for text in (str(error.value), error.value.told()):
            assert text.isprintable() and len(text) < 700
    for kind in (dict[str, int], Named):
        with pytest.raises(ValueError) as error:
            checked("x", {key: "y"}, kind)
        assert str(error.value).isprintable() and len(str(error.value)) < 700


class Named(TypedDict):
    a: int


def test_an_integer_will_do_for_a_float():
    found = checked("rate", 2, float)
    assert found == 2.0 and type(found) is float


def test_a_flipped_bit_of_a_sealed_file_is_found(tmp_path):
    file, facts = tmp_path / "facts.json", {"b": 1, "a": [0.1, "é"]}
    content = sealed(facts)
    for i in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[i] ^= 1 << bit
            file.write_bytes(flipped)
            with pytest.raises(ValueError, match=r"not JSON|has changed since it was written"):
                read_sealed(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content + b"\n",
        lambda content: content.removesuffix(b"\n"),
        lambda content: content.replace(b": ", b":"),
        lambda content: content.replace(b"\\u00e9", "é".encode()),
        lambda content: json.dumps(json.loads(content), indent=1, sort_keys=True).encode() + b"\n",
    ],
)
def test_the_same_content_in_other_bytes_has_changed(tmp_path, change):
    """A hash of the file, by which a lineage knows it, is another one then."""
    facts = {"z": "é", "a": 2}
    file = write(tmp_path, sealed(facts))
    assert read_sealed(file) == facts
    file.write_bytes(change(sealed(facts)))
    with pytest.raises(ValueError, match=f"{file}: its content has changed since it was written"):
        read_sealed(file)


def test_a_file_of_an_older_version_has_no_seal_and_one_whose_seal_lost_its_name_is_damaged(tmp_path):
    assert read_own(write(tmp_path, '{"loss": 1.5}')) == {"loss": 1.5}
    file = write(tmp_path, sealed({"loss": 1.5}).decode().replace("sha256", "sha255").replace("1.5", "1.6"))
    with pytest.raises(ValueError, match="has changed since it was written"):
        read_own(file)
