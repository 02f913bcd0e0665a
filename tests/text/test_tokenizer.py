"""Tokenizers of both kinds, tiny ones trained here and real ones: what is encoded is the text, and all of it."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from logtrain.data.documents import documents
from logtrain.data.files import InputFile
from logtrain.text.tokenizer import Tokenizer
from tests.support.bpe import CORPUS, LONG, SPECIAL, WORDS, with_config, write_bpe


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Path:
    return write_bpe(tmp_path_factory.mktemp("bpe"))


def train_sentencepiece(folder: Path, **options) -> Path:
    model = io.BytesIO()
    settings = {"vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, minloglevel=2, **settings, **options
    )
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


@pytest.fixture(scope="module")
def llama2(tmp_path_factory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("sp"), control_symbols=["<ctl>"], remove_extra_whitespaces=False)


@pytest.fixture(params=["bpe", "llama2"])
def tokenizer(request) -> Tokenizer:
    return Tokenizer.load(request.getfixturevalue(request.param))


# U+2581 is how sentencepiece writes a space, so that one character comes back as a space.
texts = st.lists(
    st.one_of(
        st.sampled_from([*SPECIAL, "<s>", "</s>", "<ctl>", "<unk>", "<0x41>", "\x00", "\r\n", *WORDS]),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=8),
    ),
    max_size=8,
).map("".join)


# -- encoding ----------------------------------------------------------------------------------------


@given(text=texts)
@settings(max_examples=150)
def test_text_survives_and_special_strings_stay_text(bpe, llama2, text):
    for folder in (bpe, llama2):
        tokenizer = Tokenizer.load(folder)
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special_tokens().values())
        assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special=False) == text


@given(batch=st.lists(texts, max_size=4))
@settings(max_examples=50)
def test_batch_equals_one_by_one(bpe, llama2, batch):
    for folder in (bpe, llama2):
        tokenizer = Tokenizer.load(folder)
        assert tokenizer.encode_batch(batch) == [tokenizer.encode(text) for text in batch]


def test_truncation_padding_dropout_in_the_file_are_off(bpe):
    saved = tokenizers.Tokenizer.from_file(str(bpe / "tokenizer.json"))
    assert len(saved.encode(LONG).ids) == 16  # what would happen: cut at 8, padded to 16
    tokenizer = Tokenizer.load(bpe)
    ids = tokenizer.encode(LONG)
    assert len(ids) > 100
    assert tokenizer.decode(ids) == LONG
    assert tokenizer.encode_batch([LONG, "disk"]) == [ids, tokenizer.encode("disk")]
    assert all(tokenizer.encode(LONG) == ids for _ in range(10)), "dropout makes every encoding another"


def test_decode_shows_special_tokens_on_request(tokenizer):
    special = tokenizer.special_tokens()
    end = "<|eot_id|>" if "<|eot_id|>" in special else "</s>"
    ids = [tokenizer.bos_id, *tokenizer.encode("disk error"), special[end], *tokenizer.encode("root")]
    bos = next(text for text, id in special.items() if id == tokenizer.bos_id)
    assert tokenizer.decode(ids, skip_special=False) == f"{bos}disk error{end}root"
    assert tokenizer.decode(ids).replace(" ", "") == "diskerrorroot"


# -- special tokens ----------------------------------------------------------------------------------


def test_vocab_size_counts_ids_not_tokens(bpe, tmp_path):
    saved = json.loads((bpe / "tokenizer.json").read_text())
    assert Tokenizer.load(bpe).vocab_size == len(saved["model"]["vocab"]) + len(SPECIAL)
    saved["model"]["vocab"]["far"] = 900  # a hole before it
    tokenizer = with_config(bpe, tmp_path, None, model=saved["model"])
    assert tokenizer.vocab_size == 901


def test_document_end(bpe, llama2, tmp_path):
    tokenizer = Tokenizer.load(bpe)
    assert tokenizer.document_end("auto") == tokenizer.document_end() == tokenizer.token_id("<|end_of_text|>")
    assert tokenizer.document_end("<|begin_of_text|>") == tokenizer.token_id("<|begin_of_text|>")
    assert Tokenizer.load(llama2).document_end() == 2
    # <|end_of_text|> comes before <|endoftext|>, and that before </s>
    saved = json.loads((bpe / "tokenizer.json").read_text())
    names = iter(["</s>", "<|endoftext|>", "<unused>", "<|start_header_id|>"])
    for token in saved["added_tokens"]:
        token["content"] = next(names)
    tokenizer = with_config(bpe, tmp_path, {}, added_tokens=saved["added_tokens"], post_processor=None)
    assert tokenizer.document_end() == tokenizer.token_id("<|endoftext|>")


@pytest.mark.parametrize("name", ["<|eot_id|>", "<|eom_id|>", "<|im_end|>"])
def test_a_turn_end_is_no_document_end(tokenizer, name):
    with pytest.raises(
        ValueError, match=r"marks a turn of a chat.*use one of <\|end_of_text\|>, <\|endoftext\|>, </s>"
    ):
        tokenizer.document_end(name)


def test_no_document_end(bpe, tmp_path):
    saved = json.loads((bpe / "tokenizer.json").read_text())
    del saved["added_tokens"][1]
    tokenizer = with_config(bpe, tmp_path, None, added_tokens=saved["added_tokens"])
    with pytest.raises(ValueError, match=r"document_end auto found none of .*; name the token"):
        tokenizer.document_end()


def test_token_id_is_of_special_tokens_only(tokenizer):
    with pytest.raises(ValueError, match=r"'error' is no special token of .*tokenizer.*; the nearest are <"):
        tokenizer.token_id("error")


def test_nearest_special_token(bpe):
    with pytest.raises(ValueError, match=r"the nearest are <\|end_of_text\|>"):
        Tokenizer.load(bpe).token_id("<|endoftext|>")


def test_sentencepiece_ids(llama2, tmp_path):
    tokenizer = Tokenizer.load(llama2)
    assert (tokenizer.bos_id, tokenizer.vocab_size) == (1, 400)
    assert tokenizer.special_tokens().keys() == {"<s>", "</s>", "<ctl>"}
    assert Tokenizer.load(train_sentencepiece(tmp_path / "no_bos", bos_id=-1)).bos_id is None


# -- files -------------------------------------------------------------------------------------------


def test_digest_and_files(bpe, llama2, tmp_path):
    tokenizer = with_config(bpe, tmp_path, {"bos_token": None})
    digest = tokenizer.sha256
    for name in ("chat_template.jinja", "special_tokens_map.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.sha256 == digest, "only what decides the ids counts"
    names = {file.name for file in tokenizer.files}
    assert names == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
    assert all(file.is_file() for file in tokenizer.files)
    assert with_config(bpe, tmp_path, None, normalizer={"type": "Lowercase"}).sha256 != digest
    assert Tokenizer.load(bpe / "tokenizer.json").sha256 == Tokenizer.load(bpe).sha256  # a file will do for its folder
    (tmp_path / "tokenizer.model").write_bytes((llama2 / "tokenizer.model").read_bytes())
    assert Tokenizer.load(tmp_path).sha256 != Tokenizer.load(llama2).sha256  # tokenizer.json goes first
    assert Tokenizer.load(tmp_path / "tokenizer.model").sha256 == Tokenizer.load(llama2).sha256


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such tokenizer folder"),
        ({}, "no tokenizer.json or tokenizer.model in it"),
        ({"tokenizer.json": "{"}, "tokenizer.json: not a tokenizer.json"),
        ({"tokenizer.model": "hello"}, "tokenizer.model: not a sentencepiece model"),
        ({"tokenizer.model": "IQ== 0\nIg== 1\n"}, "tiktoken vocabulary .*give the Hugging Face folder"),
    ],
)
def test_bad_folders(tmp_path, files, message):
    folder = tmp_path / "tokenizer"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.load(folder)
    assert len(str(error.value).splitlines()) == 1


def test_bad_config(bpe, tmp_path):
    with_config(bpe, tmp_path, {})
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: not JSON"):
        Tokenizer.load(tmp_path)


# -- real tokenizers on real text --------------------------------------------------------------------


def real_texts(shared: Path) -> list[str]:
    logs = sorted((shared / "data" / "loghub").glob("*/*.log"))
    assert len(logs) == 12
    files = [*sorted((shared / "data" / "loglm").glob("*.json")), *logs]
    return [document.text for file in files for document in documents(InputFile(file), "auto", text_chars=4096)]


def test_llama3_equals_transformers(llama3_tokenizer, shared):
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer.load(llama3_tokenizer), AutoTokenizer.from_pretrained(llama3_tokenizer)
    real = real_texts(shared)[::6]
    assert ours.encode_batch(real) == theirs(real, add_special_tokens=False)["input_ids"]
    assert ours.decode(ours.encode(real[-1])) == real[-1]
    assert (ours.bos_id, ours.document_end(), ours.vocab_size) == (128000, 128001, 128256)

    text = "kernel: <|eot_id|> <|begin_of_text|>\r\n<|reserved_special_token_5|>"
    assert ours.encode(text) == theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert max(ours.encode(text)) < 128000
    assert ours.decode(ours.encode(text)) == text


def test_stories260k_equals_transformers(shared):
    from transformers import AutoTokenizer

    folder = shared / "data" / "stories260k"
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    real = real_texts(shared)[-40:]
    assert ours.encode_batch(real) == theirs(real, add_special_tokens=False)["input_ids"]
    assert (ours.bos_id, ours.document_end(), ours.vocab_size) == (1, 2, 512)


def test_smollm2_has_no_bos(smollm2):
    tokenizer = Tokenizer.load(smollm2)
    assert tokenizer.bos_id is None
    assert tokenizer.document_end() == tokenizer.token_id("<|endoftext|>") == 0
