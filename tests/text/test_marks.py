"""What is a mark, that no text becomes, and what opens a document: by all that a tokenizer's folder says."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from logtrain.text.tokenizer import Tokenizer
from tests.support.bpe import SPECIAL, with_config, write_bpe


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Path:
    return write_bpe(tmp_path_factory.mktemp("bpe"))


@pytest.mark.parametrize(
    ("config", "bos"),
    [
        ({"bos_token": SPECIAL[0]}, SPECIAL[0]),
        ({"bos_token": {"content": SPECIAL[1], "lstrip": False}}, SPECIAL[0]),  # the tokenizer writes the other
        ({"bos_token": None}, None),
        ({"bos_token": ""}, None),
        ({}, SPECIAL[0]),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}, SPECIAL[0]),
        ({"bos_token": SPECIAL[0], "add_bos_token": False}, None),
        ({"bos_token": SPECIAL[0], "add_bos_token": True}, SPECIAL[0]),
        (None, SPECIAL[0]),  # no config: what the tokenizer's own template puts first
    ],
)
def test_bos(bpe, tmp_path, config, bos):
    tokenizer = with_config(bpe, tmp_path, config)
    assert tokenizer.bos_id == (None if bos is None else tokenizer.token_id(bos))


@pytest.mark.parametrize(
    ("config", "bos"),
    [
        (None, None),
        ({"bos_token": SPECIAL[0]}, None),  # named for a template's sake, and written by nobody
        ({"bos_token": SPECIAL[0], "add_bos_token": True}, SPECIAL[0]),
        ({"bos_token": SPECIAL[3], "add_bos_token": True}, None),  # opens a turn, not a document
        ({"add_bos_token": True}, None),
    ],
)
def test_bos_of_a_tokenizer_that_writes_none(bpe, tmp_path, config, bos):
    tokenizer = with_config(bpe, tmp_path, config, post_processor=None)
    assert tokenizer.bos_id == (None if bos is None else tokenizer.token_id(bos))


def test_a_turn_mark_that_the_tokenizer_writes_opens_no_document(bpe, tmp_path):
    saved = (bpe / "tokenizer.json").read_text().replace(SPECIAL[0], "<|im_start|>")
    (tmp_path / "tokenizer.json").write_text(saved)
    assert Tokenizer.load(tmp_path).bos_id is None


def test_bos_by_the_older_files(bpe, tmp_path):
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": SPECIAL[1]}))
    tokenizer = with_config(bpe, tmp_path, {"add_bos_token": True}, post_processor=None)
    assert tokenizer.bos_id == tokenizer.token_id(SPECIAL[1])


def test_bos_equals_transformers(bpe, tmp_path):
    """As case 03 of public reports: no bos_token in tokenizer_config.json, and yet the tokenizer writes one."""
    from transformers import AutoTokenizer

    for number, config in enumerate([{}, {"bos_token": SPECIAL[0]}, {"bos_token": SPECIAL[1]}]):
        for post_processor in ({}, {"post_processor": None}):
            folder = tmp_path / f"{number}{len(post_processor)}"
            folder.mkdir()
            ours = with_config(bpe, folder, {"tokenizer_class": "PreTrainedTokenizerFast"} | config, **post_processor)
            theirs = AutoTokenizer.from_pretrained(folder)("", padding=False)["input_ids"]
            assert theirs == ([] if ours.bos_id is None else [ours.bos_id])


# -- marks -----------------------------------------------------------------------------------------


def with_added(bpe: Path, folder: Path, *tokens: tokenizers.AddedToken, **config) -> Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe / "tokenizer.json"))
    tokenizer.add_tokens(list(tokens))
    return with_config(bpe, folder, config, **json.loads(tokenizer.to_str()))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("<|im_start|>", {}),  # of every chat
        ("<|any|>", {}),  # by its shape
        ("[INST]", {"chat_template": "{{ '[INST]' }}"}),
        ("</think>", {"pad_token": "</think>"}),
        ("<call>", {"additional_special_tokens": ["<call>"]}),
        ("<call>", {"added_tokens_decoder": {"999": {"content": "<call>", "special": True}}}),
    ],
)
def test_no_text_becomes_a_mark_that_was_added_as_a_word(bpe, tmp_path, text, config, normalized):
    tokenizer = with_added(bpe, tmp_path, tokenizers.AddedToken(text, normalized=normalized), **config)
    mark = tokenizer.marks[text]
    ids = tokenizer.encode(f"error {text} disk{text}")
    assert mark not in ids
    assert tokenizer.decode(ids) == f"error {text} disk{text}"
    assert tokenizer.encode_batch([text])[0] == tokenizer.encode(text) == Tokenizer.load(bpe).encode(text)
    assert mark in tokenizer.encode_with_spans(text, spelled=True).ids
    assert text in tokenizer.decode([mark]), "a token that is not special is part of an answer"


def test_an_added_word_that_is_no_mark_stays_a_word(bpe, tmp_path):
    tokenizer = with_added(bpe, tmp_path, tokenizers.AddedToken("sshd"), chat_template="{{ 'sshd' }}")
    assert tokenizer.encode("sshd") == [tokenizer.special_tokens()["sshd"]]
    assert "sshd" not in tokenizer.marks


@pytest.mark.parametrize("kind", ["ignore_merges", "unigram", "words"])
def test_no_text_becomes_a_mark_that_is_a_word_of_the_vocabulary(tmp_path, kind):
    pieces = ["<unk>", "</s>", *"abs </>", "\u2581"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    model = {
        "ignore_merges": models.BPE(vocab=vocab, merges=[], unk_token="<unk>", ignore_merges=True),
        "unigram": models.Unigram([(piece, 0.0 if piece == "</s>" else -5.0) for piece in pieces], 0),
        "words": models.WordLevel(vocab, unk_token="<unk>"),
    }[kind]
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    assert 1 in tokenizer.encode("a </s>").ids, "the library does"
    ours = Tokenizer.load(tmp_path)
    assert ours.marks["</s>"] == 1
    assert 1 not in ours.encode("a </s>")
    assert 1 not in ours.encode_batch(["</s></s> a"])[0]
    assert kind == "words" or ours.decode(ours.encode("</s>"), skip_special=False).replace(" ", "") == "</s>"
    assert ours.vocab_size == len(pieces)


def test_tokens_that_only_the_files_beside_list(bpe, tmp_path):
    """Older versions of transformers left added tokens out of tokenizer.json."""
    from transformers import AutoTokenizer

    listed = {"411": {"content": "<|b|>", "special": True}, "410": {"content": "sshd", "special": False}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<|c|>"]}
    ours = with_config(bpe, tmp_path, config | {"added_tokens_decoder": listed}, padding=None)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "sshd <|b|><|c|>"
    assert ours.encode_with_spans(text, spelled=True).ids == theirs.encode(text, add_special_tokens=False)
    assert len(ours.encode("sshd")) == 1
    assert "<|b|>" in ours.marks
    assert ours.sha256 != Tokenizer.load(bpe).sha256


def test_a_models_spare_rows_have_no_text(bpe, tmp_path):
    tokenizer = with_added(bpe, tmp_path, tokenizers.AddedToken("<|im_start|>"))
    spare = [tokenizer.vocab_size, tokenizer.vocab_size + 1]
    assert tokenizer.encode_between("a", tokenizer.marks["<|im_start|>"], None).ids == tokenizer.encode("a")
    assert tokenizer.decode(spare, skip_special=False) == ""
