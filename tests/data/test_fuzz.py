"""Random rows, damaged files and manifests: what reads them ends, with the right rows or a ValueError of one line.

LOGTRAIN_FUZZ=N: N times as many examples, other ones each time.
"""

import gzip
import io
import json
import os
import zipfile
from pathlib import Path
from typing import get_args

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logtrain.core.untrusted import SEAL, sealed
from logtrain.data.config import ChatFormat, TextFormat
from logtrain.data.conversations import Conversation, conversations
from logtrain.data.documents import Document, documents
from logtrain.data.files import InputFile
from logtrain.data.inputs import Inputs
from logtrain.data.lines import BadRow
from logtrain.data.log import read_log
from logtrain.data.questions import Question, QuestionFormat, questions
from logtrain.data.shards import Split
from tests.support.bombs import write_zstd
from tests.support.synthetic import write_data, write_tokenizer

TIMES = int(os.environ.get("LOGTRAIN_FUZZ", "0"))
slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
fuzz = settings(max_examples=120 * max(1, TIMES), derandomize=not TIMES, suppress_health_check=slow)

BOMB = pytest.param("bomb.log.zst", marks=pytest.mark.slow)
COLUMNS = ("text", "instruction", "input", "output", "log", "domain", "system", "conversations", "messages", "from")
COLUMNS += ("value", "role", "content")
numbers = st.one_of(st.integers(-2, 9), st.sampled_from([2**63, 10**39, 10**900, float("inf")]), st.floats())
strings = st.one_of(
    st.text(st.characters(), max_size=8),
    st.sampled_from(["human", "gpt", "user", "assistant", "system", "tool", "\ud800", "\0", "a" * 300, "\x1b[2J"]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, strings),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(COLUMNS) | strings, inner, max_size=4),
    max_leaves=12,
)
turn = st.dictionaries(st.sampled_from(["from", "value", "role", "content"]), strings, max_size=4)
turns = st.lists(turn, max_size=4)
rows = st.dictionaries(st.sampled_from(COLUMNS), st.one_of(values, strings, turns), max_size=5)
others = st.one_of(
    st.integers(1, 5000).map(lambda depth: "[" * depth + "]" * depth),
    st.integers(1, 5000).map(lambda digits: "7" * digits),
)


def read_all(path: Path) -> int:
    """All that there is to read in a file of rows -> how much of it was good. Each error is one line with the path."""
    good = 0
    readers = (
        *(lambda f=f: documents(InputFile(path), f, 9) for f in get_args(TextFormat)),
        *(lambda f=f: conversations(InputFile(path), f) for f in get_args(ChatFormat)),
        *(lambda f=f: questions(path, f, "all") for f in get_args(QuestionFormat)),
    )
    for read in readers:
        try:
            for item in read():
                assert isinstance(item, BadRow | Document | Conversation | Question)
                assert not isinstance(item, BadRow) or len(str(item)) < 600
                good += not isinstance(item, BadRow)
        except ValueError as error:
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)
    try:
        read_log(str(path))
    except ValueError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
    return good


@given(
    rows=st.lists(st.one_of(rows.map(json.dumps), values.map(json.dumps), others), max_size=4), is_array=st.booleans()
)
@fuzz
def test_rows(tmp_path, rows, is_array):
    path = tmp_path / "a.json"
    path.write_text("[" + ",".join(rows) + "]" if is_array else "\n".join(["{}", *rows]))
    read_all(path)
    good = path.with_name("good.jsonl")
    good.write_text("\n".join([*rows, '{"text": "good"}']) if rows else '{"text": "good"}')
    if not good.read_text().startswith("["):
        assert read_all(good) >= 2, "the others spoil no good row"


kinds = st.sampled_from(["flip", "cut", "insert", "repeat", "drop"])
damage = st.lists(st.tuples(kinds, st.integers(0, 2**31), st.binary(max_size=9)), min_size=1, max_size=3)


def damaged(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, where, extra in changes:
        at = where % (len(content) + 1)
        head, tail = content[:at], content[at:]
        if kind == "flip" and tail:
            tail = bytes([tail[0] ^ (1 << where % 8)]) + tail[1:]
        content = {
            "flip": head + tail,
            "cut": head,
            "insert": head + extra + tail,
            "repeat": content + tail,
            "drop": head + tail[len(extra) :],
        }[kind]
    return content


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl.zst", "a.log.gz", "a.log.zst", BOMB])
@given(changes=damage)
@fuzz
def test_packed_files(tmp_path, name, changes):
    text = b"\n".join(b'{"text": "line %d"}' % i for i in range(40))
    text = b"[" + text.replace(b"\n", b",") + b"]" if name.startswith("a.json.") else text
    path = tmp_path / name
    if name.startswith("bomb"):
        whole = write_zstd(path, text, b"a", 30).read_bytes()
    else:
        whole = gzip.compress(text) if name.endswith("gz") else zstandard.compress(text)
    path.write_bytes(damaged(whole, changes))
    read_all(path)


@given(changes=damage, method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
@fuzz
def test_archives(tmp_path, changes, method):
    path, packed = tmp_path / "a.zip", io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name in ("a.jsonl", "b/c.log", "d.json.gz", "e.csv"):
            text = b"".join(b'{"text": "line %d of %s"}\n' % (i, name.encode()) for i in range(20))
            text = b"text\n" + text.replace(b'"', b"'") if name == "e.csv" else text
            archive.writestr(name, gzip.compress(text) if name.endswith("gz") else text)
    path.write_bytes(damaged(packed.getvalue(), changes))
    try:
        files = Inputs([str(path)], 64).files
    except ValueError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
        return
    for file in files:
        try:
            assert len(file.sha256()) == 64
            for item in documents(file, "auto", 9):
                assert isinstance(item, BadRow | Document)
        except ValueError as error:
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("manifests")
    tokenizer = write_tokenizer(home / "tokenizer", 40)
    return write_data(home / "data", tokenizer, seq_len=32, lengths={"train": [3, 9, 20], "valid": [5]})


@given(changes=damage, name=st.sampled_from(["manifest.json", "report.json"]))
@fuzz
def test_damaged_manifests(folder, changes, name):
    file = folder / name
    before = file.read_bytes()
    file.write_bytes(damaged(before, changes))
    try:
        split = Split.open(folder)
    except ValueError as error:
        assert str(error).startswith(str(folder))
        assert "\n" not in str(error)
    else:
        assert file.read_bytes() == before, "the changes have undone each other"
        assert split.lengths.tolist() == [3, 9, 20]
    finally:
        file.write_bytes(before)


@given(path=st.lists(st.integers(0, 9), min_size=1, max_size=6), value=values)
@fuzz
def test_other_manifests_with_a_seal(folder, path, value):
    file = folder / "manifest.json"
    before = file.read_bytes()
    facts = json.loads(before)
    facts.pop(SEAL)
    place = facts
    for step, index in enumerate(path):
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = keys[index % len(keys)]
        if step == len(path) - 1 or not place[key] or not isinstance(place[key], dict | list):
            place[key] = value
            break
        place = place[key]
    file.write_bytes(sealed(facts))
    try:
        for name in ("train", "valid"):
            split = Split.open(folder, name)
            for document, length in enumerate(split.lengths.tolist()):
                assert len(split.read(document, 0, length)) == length
    except ValueError as error:
        assert str(error).startswith(str(folder))
        assert "\n" not in str(error)
    finally:
        file.write_bytes(before)
