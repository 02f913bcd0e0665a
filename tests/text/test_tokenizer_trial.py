"""Tokenizers whose regular expressions and replacements do not end: one line, in bounded time and memory."""

import json
import time
from pathlib import Path

import pytest

from logtrain.text import tokenizer_trial
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import write_tokenizer


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replace(text: str, content: str) -> dict:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


HARMFUL = {
    "nested repetitions": {"pre_tokenizer": split("(a+)+$")},
    "a word of its own": {"pre_tokenizer": split("((?:zqx)+)+$")},
    "alternatives that are the same": {"pre_tokenizer": split("(q|q)*$")},
    "letters and digits": {"pre_tokenizer": split(r"(\w*)*\x01")},
    "spaces": {"pre_tokenizer": split(r"(\s*\s*)*x")},
    "in a sequence": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split("x"), split("(a+)+$")]}},
    "a normaliser": {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}},
    "a replacement that grows": {"normalizer": replace("a", "b" * 1_000_000)},
    "replacements that double": {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "aa")] * 60}},
    "a decoder that doubles": {"decoder": {"type": "Sequence", "decoders": [replace("a", "aa")] * 60}},
    "a long beginning": {"normalizer": {"type": "Prepend", "prepend": "a" * 100_000}},
}


def changed(folder: Path, **changes: object) -> Path:
    write_tokenizer(folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize("harm", HARMFUL)
def test_a_tokenizer_that_does_not_end_is_one_line(tmp_path, monkeypatch, harm: str):
    monkeypatch.setattr(tokenizer_trial, "SECONDS", 3)
    folder, began = changed(tmp_path / "tokenizer", **HARMFUL[harm]), time.monotonic()
    with pytest.raises(ValueError, match="not a tokenizer to use: lines of 400 characters") as error:
        Tokenizer.load(folder)
    assert str(error.value).startswith(f"{folder / 'tokenizer.json'}: ")
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < 15


def test_an_unknown_regular_expression_that_ends_is_tried_and_used(tmp_path):
    tokenizer = Tokenizer.load(changed(tmp_path, pre_tokenizer=split(r"[A-Z]?[a-z]+|\d+")))
    assert tokenizer.encode("why error")


def test_known_ones_start_no_process(tmp_path, monkeypatch):
    """A model's start must not take longer for it."""
    monkeypatch.setattr(tokenizer_trial, "Worker", None)
    assert Tokenizer.load(write_tokenizer(tmp_path)).encode("why error")


def test_what_the_trial_misses_is_a_line_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_trial, "patterns_to_try", lambda _: [])
    tokenizer = Tokenizer.load(changed(tmp_path, pre_tokenizer=split("(a+)+$")))
    with pytest.raises(ValueError, match=r"tokenizer\.json: its tokenizer fails \(Onig"):
        tokenizer.encode("a" * 100 + "!")
