"""Files to which lines are added: a torn end is nothing, all else that has changed is refused, whatever it is."""

import json
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import pytest

from logtrain.core.sealed_lines import add, adding, parsed, read_sealed_lines
from logtrain.core.untrusted import SEAL, seal_of

LINES = [{"number": i, "text": "é" * i} for i in range(4)]


class Old(NamedTuple):
    number: int
    text: str


@dataclass(frozen=True)
class New:
    number: int
    text: str
    note: str = "none"


@pytest.fixture
def file(tmp_path) -> Path:
    with adding(tmp_path / "lines.jsonl") as stream:
        add(stream, *LINES)
    return tmp_path / "lines.jsonl"


def read(file: Path) -> list[dict]:
    return [facts for _, facts in read_sealed_lines(file, "and it is asked again")]


def test_wherever_a_kill_tears_the_end_all_before_it_is_there_and_goes_on(file):
    whole = file.read_bytes()
    ends = [at for at in range(len(whole) + 1) if at == 0 or whole[at - 1 : at] == b"\n"]
    for size in range(len(whole) + 1):
        file.write_bytes(whole[:size])
        there = sum(end <= size + 1 for end in ends) - 1  # a line without its line end alone is whole
        assert read(file) == LINES[:there]
        with adding(file) as stream:
            add(stream, {"number": 9, "text": ""})
        assert read(file) == [*LINES[:there], {"number": 9, "text": ""}]


def test_a_flipped_bit_is_refused(file):
    whole, kept = file.read_bytes(), 0
    for at in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            file.write_bytes(flipped)
            try:
                assert read(file) == LINES
                kept += 1
            except ValueError as error:
                assert "has changed since it was written; delete the line, and it is asked again" in str(error)
    assert kept < 0.01 * 8 * len(whole)  # such as another blank in the place of a line end


@pytest.mark.parametrize(
    "content",
    [b"[]\n", b"3\n", b"{}\n", b'{"sha256": {}}\n', b"[" * 1000 + b"]" * 1000 + b"\n", b"\xff\n", b"torn\n"],
)  # fmt: skip
def test_another_line_is_refused(file, content):
    file.write_bytes(file.read_bytes() + content)
    with pytest.raises(ValueError, match=r"lines.jsonl line 5: has changed since it was written"):
        read(file)


def test_what_is_made_again_may_be_torn_anywhere_but_not_damaged(file):
    lines, told = file.read_bytes().splitlines(keepends=True), []
    for cut in range(1, len(lines[1]) - 1):
        file.write_bytes(lines[0] + lines[1][:cut] + b"\n" + lines[2])
        read_again = read_sealed_lines(file, "", told.append, is_made_again=True)
        assert [facts for _, facts in read_again] == [LINES[0], LINES[2]]
    assert told == [2] * (len(lines[1]) - 2)
    for other in (b"{}\n", lines[1].replace(b'"', b"'", 1), lines[1].replace(b"1", b"2", 1)):
        file.write_bytes(lines[0] + other + lines[2])
        with pytest.raises(ValueError, match="line 2: has changed"):
            list(read_sealed_lines(file, "", is_made_again=True))


def test_a_deep_line_with_a_seal_that_fits_is_refused(file):
    deep: list = []
    for _ in range(400):
        deep = [deep]
    facts = {"number": 1, "text": deep}
    file.write_text(json.dumps(facts | {SEAL: seal_of(facts)}) + "\n")
    with pytest.raises(ValueError, match="line 1: has changed"):
        read(file)


def test_a_line_without_an_end_takes_no_memory(file):
    os.truncate(file, 1 << 40)  # sparse
    with pytest.raises(ValueError, match="line 5: has changed"):
        read(file)


def test_a_full_disk_is_named():
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"), FileIO("/dev/full", "a+") as stream:
        add(stream, LINES[0])


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for use in (lambda: adding(tmp_path / "pipe"), lambda: read(tmp_path / "pipe")):
        with pytest.raises(ValueError, match="pipe: not a regular file"):
            use()
    assert read(tmp_path / "none") == []


def test_versions_are_told_from_damage():
    old = {"number": 1, "text": "a"}
    assert parsed(New, old, "file line 1") == New(1, "a", "none"), "what an older version did not write"
    with pytest.raises(ValueError, match=r"^file line 2: written by a newer version of logtrain: note is unknown to"):
        parsed(Old, old | {"note": "b"}, "file line 2")
    with pytest.raises(ValueError, match=r"^file line 3: written by an older version of logtrain: text is missing$"):
        parsed(Old, {"number": 1}, "file line 3")
    with pytest.raises(ValueError, match=r"^f: written by another version of logtrain: text is missing, x is unknown"):
        parsed(Old, json.loads('{"number": 1, "x": 2}'), "f")
    with pytest.raises(ValueError, match=r'^f: number = "1": expected an integer$'):
        parsed(Old, {"number": "1", "text": "a"}, "f")
