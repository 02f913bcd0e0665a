"""What a tokenizer loses is counted to the character; what it writes in another way on purpose is not lost."""

from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from logtrain.data.lost_text import LostText, lost_characters
from logtrain.text.tokenizer import Tokenizer
from tests.support import ROOT

LETTERS = " \nabcdefghijklmnopqrstuvwxyz,."
TEXTS = [
    "\n a log  line\r\n\t",
    " one",
    "  ",
    "",
    "\u2581\u2582 e\u0301 \u00e9 \ufb01 \U0001f469\u200d\U0001f467 \ufeff\u00a0\u2028\x1b[0m\x7f\x00",
    "<|eot_id|> <s></s> <unk> <0x0A> <|begin_of_text|>",
    "".join(map(chr, [*range(0xA0, 0x3000, 7), *range(0x4E00, 0xA000, 397), *range(0x1F300, 0x1F700, 5)])),
]


def written(folder: Path, tokenizer: tokenizers.Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


def letters(folder: Path, of: str = LETTERS, unknown: str | None = None) -> Tokenizer:
    """A token for each letter, and perhaps one for all others."""
    every = [*of, unknown] if unknown else [*of]
    vocab = {letter: i for i, letter in enumerate(every)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=unknown, fuse_unk=True))
    tokenizer.decoder = decoders.Fuse()
    return written(folder, tokenizer)


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_every_character_is_counted(tmp_path, unknown):
    find = LostText(letters(tmp_path, LETTERS.replace("e", ""), unknown)).find
    texts = ["all is in it", "the end, here", "", "é and É", "eee" * 100, "all of it"]
    assert find(texts) == {1: (4, "e"), 3: (2, "Éé"), 4: (300, "e")}
    assert find(["nothing of it\n", " "]) == {}
    assert find([]) == {}


def test_what_only_decoding_shows(tmp_path):
    """A tokenizer that drops a letter before a line end, which comes back when it stands between two others."""
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(LETTERS)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("a(?=\\n)"), "removed")
    tokenizer.decoder = decoders.Fuse()
    find = LostText(written(tmp_path, tokenizer)).find
    assert find(["a\nb", "na\na\n", "abcd"]) == {0: (1, "a"), 1: (2, "a")}, "the first is the sample"


def test_words_without_a_token(tmp_path):
    """They are found by the unknown token, for each of their letters alone is known."""
    words = ["log", "line", "x", "[UNK]", *(f"x{c}x" for c in "loginew")]
    tokenizer = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    loaded = written(tmp_path, tokenizer)
    assert loaded.unknown_id == 3
    assert LostText(loaded).find(["log line", "log new"], with_unknown=[1]) == {1: (3, "enw")}


def test_what_a_normaliser_writes_otherwise_is_not_lost(tmp_path):
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(LETTERS)}, merges=[]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.decoder = decoders.Fuse()
    find = LostText(written(tmp_path, tokenizer)).find
    assert find(["The \ufb01rst \u00c9nd", "\u212b"]) == {}
    assert find(["\u00e9\u00df"]) == {0: (1, "\u00df")}


@pytest.mark.parametrize("kind", ["identity", "nfkc"])
def test_a_sentencepiece_model_with_bytes_loses_nothing(tmp_path, kind):
    settings = {"vocab_size": 400, "model_type": "bpe" if kind == "identity" else "unigram", "byte_fallback": True}
    settings |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False} if kind == "identity" else {}
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    with open(tmp_path / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, minloglevel=2, hard_vocab_limit=False, **settings
        )
    assert LostText(Tokenizer.load(tmp_path)).find(TEXTS) == {}


def test_a_sentencepiece_model_without_bytes(tmp_path):
    with open(tmp_path / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c ab abc"] * 9), model_writer=file, vocab_size=10, minloglevel=2
        )
    find = LostText(Tokenizer.load(tmp_path)).find
    assert find(["a b", "abd\u00e9 d", " c"]) == {1: (3, "d\u00e9")}


def test_genuine_tokenizers_lose_nothing(shared, llama3_tokenizer, smollm2):
    controls = set("\x04\x06\x13\x14\x16\x1d")  # SmolLM2 has no token for these bytes
    logs = [path.read_text(errors="replace") for path in sorted((shared / "data" / "loghub").glob("*/*_2k.log"))]
    for folder in (llama3_tokenizer, smollm2, shared / "data" / "stories260k"):
        tokenizer = Tokenizer.load(folder)
        assert LostText(tokenizer).find([*TEXTS, *logs]) == {}
        assert lost_characters(tokenizer, "".join(controls)) == (Counter(controls) if folder == smollm2 else {})
