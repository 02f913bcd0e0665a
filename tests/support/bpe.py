"""A byte-level BPE tokenizer laid out like Llama 3's, saved with all that would silently change a document."""

import json
import random
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from logtrain.text.tokenizer import Tokenizer

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>"]
WORDS = ["error", "disk", "sshd[24499]:", "Failed", "password", "for", "root", "blk_-160", "10.0.0.1", "\n", "  "]
CORPUS = [" ".join(random.Random(i).choices(WORDS, k=12)) for i in range(300)]
LONG = " ".join(CORPUS[:20])


def write_bpe(folder: Path) -> Path:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], tokenizer.token_to_id(SPECIAL[0]))]
    )
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16)
    saved = json.loads(tokenizer.to_str())
    saved["model"]["dropout"] = 0.5
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": SPECIAL[0], "eos_token": SPECIAL[2]}))
    return folder


def with_config(bpe: Path, folder: Path, config: dict | None, **tokenizer_changes) -> Tokenizer:
    saved = json.loads((bpe / "tokenizer.json").read_text()) | tokenizer_changes
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)
