"""Bits a byte are those of what is predicted: by hand, with a model that spends a bit on every token."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers

from logtrain.core.batch import IGNORE
from logtrain.evaluation.perplexity import measure
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import writing

BOS, END = "<|begin_of_text|>", "<|end_of_text|>"
ALONE = SimpleNamespace(rank=0, size=1, device=torch.device("cpu"), sum=lambda values: values)


def write_tokenizer(folder: Path, bos: str | None) -> Tokenizer:
    """A token a byte, but "ab" is one token."""
    vocab = {text: i for i, text in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([BOS, END])
    if bos:
        tokenizer.post_processor = writing(tokenizer, bos)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos}))
    return Tokenizer.load(folder)


def one_bit_each(batch) -> torch.Tensor:
    return (batch.labels_T != IGNORE).sum() * math.log(2)


@pytest.mark.parametrize(
    ("text", "bos", "bits", "num_bytes"),
    [
        ("abc", None, 2, 1),  # c and the end; nothing predicts ab
        ("abc", BOS, 3, 3),
        ("éc", None, 3, 3),  # the second half of é, c, the end: a character that is predicted in part counts
        ("éc", BOS, 4, 3),
        ("ab", None, 1, 0),  # the end alone
        (" xé", None, 4, 3),
    ],
)
@pytest.mark.parametrize("window", [2, 64])  # a window's first token is predicted by the window before
def test_bits_per_byte_count_the_bytes_that_are_predicted(tmp_path, text, bos, bits, num_bytes, window):
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(json.dumps({"text": t}) for t in (text, "ccc")))
    tokenizer = write_tokenizer(tmp_path, bos)
    files = SimpleNamespace(tokenizer=tokenizer, max_positions=window, sha256="")
    found = measure(one_bit_each, files, file, ALONE)
    other_bits, other_bytes = (3, 2) if bos is None else (4, 3)  # ccc
    assert found["tokens"] == bits + other_bits
    assert found["bits_per_byte"] == pytest.approx((bits + other_bits) / (num_bytes + other_bytes))
