"""The small files of a prepared folder: no edit of a field passes unseen where it counts, not even with a new seal."""

import copy
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logtrain import prepare
from logtrain.core.untrusted import SEAL, sealed
from logtrain.data.prepared import MANIFEST, REPORT, check_tokenizer
from logtrain.data.shards import Split
from logtrain.text.tokenizer import Tokenizer
from tests.support.preparing import Inline, arguments, dump, make_rows
from tests.support.synthetic import write_data, write_tokenizer

VALUES = (None, True, -1, 2**70, 1.5, "", "..\x1b", [], {}, [[[[]]]], {"a": {"b": []}})
CHATS = [{"conversations": [{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": f"a{i}"}]} for i in range(9)]
# What is only told, and decides nothing: with a new seal it may say something else, of the right type.
TOLD = r"(tokenizer\.path|chat\.template_path|domains\.\d|sources\.\d\.(bytes|path))"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, bytes_tokenizer, chat_tokenizer) -> list[Path]:
    """Prepared folders, of text, of chats and of documents with a teacher."""
    home = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "Pool", Inline)
        text, chats = dump(home / "a.json", make_rows(30)), dump(home / "b.json", CHATS)
        prepare.main(arguments(bytes_tokenizer, home / "text", text, shard_tokens=1000))
        prepare.main(arguments(chat_tokenizer, home / "chat", chats, format="sharegpt", valid_fraction=0))
    lengths = {"train": [12] * 9}
    write_data(home / "taught", write_tokenizer(home / "words", 130), seq_len=32, lengths=lengths, teacher_top_k=3)
    return [home / "text", home / "chat", home / "taught"]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of each value within another."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


def edits(value: Any) -> Iterator[Any]:
    """Other values in the place of one."""
    if type(value) is int:
        yield from (value + 1, value ^ 2, -value - 1)
    if isinstance(value, str) and value:
        yield from (value[:-1], value[:-1] + chr(ord(value[-1]) ^ 1), value + "\ud800")
    yield from (other for other in VALUES if other != value or type(other) is not type(value))


def some_edited(facts: dict) -> Iterator[tuple[str, Any]]:
    """A fifth of them and those of TOLD, but all with LOGTRAIN_FUZZ set; every entry is edited in some way."""
    every = 1 if "LOGTRAIN_FUZZ" in os.environ else 5
    return (edit for i, edit in enumerate(edited(facts)) if i % every == 0 or re.fullmatch(TOLD, edit[0]))


def edited(facts: dict) -> Iterator[tuple[str, Any]]:
    """The facts with one entry gone, another one added, or a value changed, and where."""
    for path in places(facts):
        *before, last = path
        for change in (..., *edits(eval_at(facts, path))):
            changed = copy.deepcopy(facts)
            place = eval_at(changed, before)
            if change is ...:
                del place[last]
            else:
                place[last] = change
            yield ".".join(map(str, path)), changed
    yield "other", facts | {"other": 1}


def eval_at(value: Any, path: Any) -> Any:
    for key in path:
        value = value[key]
    return value


def refusal(folder: Path, tokenizer: Path) -> str:
    """What is said of the folder; "" if nothing is."""
    try:
        manifest = Split.open(folder).manifest
        if "valid" in manifest["splits"]:
            Split.open(folder, "valid")
        check_tokenizer(folder, manifest, Tokenizer.load(tokenizer))
    except ValueError as error:
        assert str(error).startswith(str(folder))
        assert len(str(error).splitlines()) == 1
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "name"), [(0, MANIFEST), (0, REPORT), (1, MANIFEST), (1, REPORT), (2, MANIFEST)])
def test_no_edit_passes(folders, bytes_tokenizer, chat_tokenizer, tmp_path, kind, name):
    folder, tokenizer = (
        shutil.copytree(folders[kind], tmp_path / "data"),
        (bytes_tokenizer, chat_tokenizer, folders[0].parent / "words")[kind],
    )
    assert refusal(folder, tokenizer) == ""
    whole = json.loads((folder / name).read_text())
    tried = 0
    for where, facts in some_edited(whole):
        (folder / name).write_text(json.dumps(facts))
        assert refusal(folder, tokenizer), where
        tried += 1
    assert tried > 100
    print(f"{tried} edits of {name}")


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_edits_with_a_new_seal(folders, bytes_tokenizer, chat_tokenizer, tmp_path, kind):
    folder, tokenizer = (
        shutil.copytree(folders[kind], tmp_path / "data"),
        (bytes_tokenizer, chat_tokenizer, folders[0].parent / "words")[kind],
    )
    whole = json.loads((folder / MANIFEST).read_text())
    whole.pop(SEAL)
    told, tried = 0, 0
    for where, facts in some_edited(whole):
        (folder / MANIFEST).write_bytes(sealed(facts))
        tried += 1
        if not refusal(folder, tokenizer):
            assert re.fullmatch(TOLD, where), where
            told += 1
    assert told
    print(f"{tried} edits with a new seal, {told} of them of what decides nothing")


@pytest.mark.parametrize("name", [MANIFEST, REPORT])
def test_damage(folders, bytes_tokenizer, tmp_path, name):
    folder = shutil.copytree(folders[0], tmp_path / "data")
    whole = (folder / name).read_bytes()
    for content in (b"", b"{}", b"[]", whole[:-3], whole.replace(b"{", b"[", 1), b"\xff" + whole, b"[" * 99_999):
        (folder / name).write_bytes(content)
        assert refusal(folder, bytes_tokenizer).startswith(str(folder / name))
    (folder / name).unlink()
    assert refusal(folder, bytes_tokenizer)
    (folder / name).mkdir()
    assert refusal(folder, bytes_tokenizer).startswith(f"{folder / name}: not a regular file")


def test_a_report_of_another_folder(folders, bytes_tokenizer, tmp_path):
    folder = shutil.copytree(folders[0], tmp_path / "data")
    shutil.copy(folders[1] / REPORT, folder / REPORT)
    assert "is the report of another folder than the manifest beside it" in refusal(folder, bytes_tokenizer)
