"""Sentencepiece models whose makers defined symbols of their own, or whose files name others: a text stays a text."""

import hashlib
import io
import json
import re
from pathlib import Path

import pytest
import sentencepiece

from logtrain.text import pieces
from logtrain.text.tokenizer import Tokenizer

CORPUS = ["why error disk user system", "the disk is full", "a b c <| x |> 0123456789"] * 40
MARKS = ["<|im_start|>", "<|im_end|>", "<\uff5cuser\uff5c>"]


def write(
    folder: Path, kind: str = "bpe", config: dict | None = None, **options
) -> sentencepiece.SentencePieceProcessor:
    """A folder with a model, whose defined symbols are MARKS and a word; returns the model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=340, model_type=kind, byte_fallback=True,
        hard_vocab_limit=False, normalization_rule_name="identity", minloglevel=2,
        **{"user_defined_symbols": [*MARKS, "sshd"], **options},
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_no_text_becomes_a_mark_that_the_maker_defined(tmp_path, kind):
    """As Yi, a Llama, has <|im_end|>; a symbol that is only a word stays one."""
    model = write(tmp_path, kind)
    tokenizer = Tokenizer.load(tmp_path)
    ids = {model.piece_to_id(mark) for mark in MARKS}
    for text in (f"why {mark} error{mark}{mark}disk" for mark in MARKS):
        assert ids & set(model.encode(text)), "the library finds it"
        found = tokenizer.encode(text)
        assert not ids & set(found)
        assert found == tokenizer.encode_batch([text])[0]
        assert tokenizer.decode(found) == text
    assert ids <= set(tokenizer.marks.values())
    assert tokenizer.decode([*ids]) == ""
    assert tokenizer.decode([model.piece_to_id(MARKS[0])], skip_special=False) == MARKS[0]
    for text in ("why error disk", " sshd  is full", "0 <| x |> \u65e5"):
        assert tokenizer.encode(text) == model.encode(text)
    assert model.piece_to_id("sshd") in tokenizer.encode("why sshd")


@pytest.mark.parametrize(
    ("config", "bos"),
    [
        ({}, "<s>"),
        ({"bos_token": "<s>"}, "<s>"),
        ({"bos_token": "<|begin|>"}, "<|begin|>"),
        ({"bos_token": {"content": "<|begin|>"}}, "<|begin|>"),
        ({"bos_token": ""}, None),
        ({"bos_token": None}, None),
        ({"bos_token": "<|begin|>", "add_bos_token": False}, None),
        ({"bos_token": "<|im_start|>"}, None),
    ],
)
def test_the_piece_that_opens_a_document_is_that_which_the_files_name(tmp_path, config, bos):
    model = write(tmp_path, config=config, user_defined_symbols=[*MARKS, "<|begin|>"])
    assert Tokenizer.load(tmp_path).bos_id == (None if bos is None else model.piece_to_id(bos))


def test_the_older_map_of_special_tokens(tmp_path):
    model = write(tmp_path, user_defined_symbols=["<|begin|>"])
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<|begin|>"}')
    assert Tokenizer.load(tmp_path).bos_id == model.piece_to_id("<|begin|>")


def test_a_name_that_is_no_piece(tmp_path):
    write(tmp_path, config={"bos_token": "<|begin_of_text|>"})
    with pytest.raises(ValueError, match=r"bos_token = '<\|begin_of_text\|>' is no piece of its tokenizer.model"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer_config.json"])
def test_words_that_only_the_files_beside_know(tmp_path, file):
    """Their ids would be those of the letters; a padding token that was added does no harm, for no text becomes it."""
    write(tmp_path)

    def add(text: str, special: bool) -> None:
        by_id = {"added_tokens_decoder": {"340": {"content": text, "special": special}}}
        names = {"pad_token": text} if special else {}
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps(names | (by_id if file != "added_tokens.json" else {}))
        )
        if file == "added_tokens.json":
            (tmp_path / file).write_text(json.dumps({text: 340}))

    add("systemd", special=False)
    with pytest.raises(ValueError, match="add words to it, as 'systemd', which it does not know; save the"):
        Tokenizer.load(tmp_path)
    add("<pad>", special=True)
    assert Tokenizer.load(tmp_path).encode("why") == Tokenizer.load(tmp_path / "tokenizer.model").encode("why")


def test_data_that_was_prepared_by_another_rule_for_marks_is_another_tokenizers(tmp_path, monkeypatch):
    """Which pieces are marks decides ids, so the digest goes by them; where there are none it is that of the file."""
    write(tmp_path)
    before = Tokenizer.load(tmp_path)
    digest = hashlib.sha256((tmp_path / "tokenizer.model").read_bytes()).hexdigest()
    text = f"why {MARKS[0]}"
    monkeypatch.setattr(pieces, "SHAPE", re.compile("never"))
    monkeypatch.setattr(pieces, "TURN_MARKS", ())
    after = Tokenizer.load(tmp_path)
    assert before.encode(text) != after.encode(text)
    assert before.sha256 != after.sha256 == digest
    write(tmp_path, user_defined_symbols=["sshd"])
    monkeypatch.undo()
    digest = hashlib.sha256((tmp_path / "tokenizer.model").read_bytes()).hexdigest()
    assert Tokenizer.load(tmp_path).sha256 == digest
