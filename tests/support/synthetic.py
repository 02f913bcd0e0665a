"""Small models and prepared folders for tests, made from nothing but a seed."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch

from logtrain.core.untrusted import sealed
from logtrain.data.manifest import FORMAT_VERSION, fingerprint_of
from logtrain.data.shards import CONTEXT, DOCUMENT, ShardWriter, teacher_dtype
from logtrain.model import hf
from logtrain.model.llama import Llama
from logtrain.model.weights import materialize
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import writing

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def write_model(folder: Path, *, weights: bool = True, **changes) -> Path:
    """A random Llama in the Hugging Face layout, with a word-level tokenizer of as many ids."""
    from transformers import LlamaConfig, LlamaForCausalLM  # here: ranks import this module, and need no 3 s more each

    settings = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": LLAMA3_ROPE,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changes,
    }
    torch.manual_seed(0)
    config = LlamaConfig(**settings)
    if weights:
        LlamaForCausalLM(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    write_tokenizer(folder, settings["vocab_size"])
    return folder


def read_model(folder: Path) -> Llama:
    """The model of a Hugging Face folder, whole, on the CPU."""
    config = hf.read_config(folder)
    with torch.device("meta"):
        llama = Llama(config)
    materialize(llama, torch.device("cpu"), hf.Weights(folder, config))
    return llama


def edit_json(path: Path, **changes) -> None:
    """Set keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def write_tokenizer(folder: Path, vocab_size: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    vocab = {text: i for i, text in enumerate(special + [f"w{i}" for i in range(2, vocab_size)])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="w2"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = writing(tokenizer, special[0])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": special[0], "eos_token": special[1]}))
    return folder


def write_data(
    folder: Path,
    tokenizer: Path,
    *,
    seq_len: int,
    lengths: dict[str, Sequence[int]],
    seed: int = 0,
    context: float = 0.0,
    steps: tuple[int, int] = (1, 4),
    teacher_top_k: int = 0,
) -> Path:
    """A prepared folder with documents of the given lengths by split; `context`: share of tokens that are no target;
    `steps`: from id to id, of which each document keeps one; `teacher_top_k`: outcomes of a teacher, which knows
    nothing of the language.
    """
    random, loaded = np.random.default_rng(seed), Tokenizer.load(tokenizer)
    folder.mkdir(parents=True)
    splits, settings = {}, {"seq_len": seq_len, "seed": seed, "context": context}
    for split, wanted in lengths.items():
        writer = ShardWriter(folder, split, 1 << 12, teacher_top_k)
        for row, length in enumerate(wanted):
            # A learnable language: the next id is the last plus a step that the document keeps.
            ids = (random.integers(loaded.vocab_size) + random.integers(*steps) * np.arange(length)) % (
                loaded.vocab_size - 2
            ) + 2
            ids[0], ids[-1] = 0, 1
            tokens = ids.astype(np.uint32)
            tokens[1:] |= np.where(random.random(length - 1) < context, np.uint32(CONTEXT), np.uint32(0))
            record = np.zeros(1, DOCUMENT)
            record["length"], record["targets"], record["row"] = length, int((tokens[1:] < CONTEXT).sum()), row
            teacher = random_teacher(tokens, teacher_top_k, loaded.vocab_size, row) if teacher_top_k else None
            writer.add(tokens, record, teacher)
        splits[split] = writer.close()
    facts = {
        "path": str(tokenizer),
        "sha256": loaded.sha256,
        "vocab_size": loaded.vocab_size,
        "bos_id": 0,
        "document_end_id": 1,
        "document_end": next(text for text, id in loaded.special_tokens().items() if id == 1),
    }
    write_manifest(folder, splits, facts, settings | ({"teacher_top_k": teacher_top_k} if teacher_top_k else {}))
    return folder


def random_teacher(stored_N: np.ndarray, top_k: int, vocab_size: int, seed: int) -> np.ndarray:
    """A distribution for each token of a document that is predicted, as a shard holds it."""
    logits_NV = 2 * np.random.default_rng(seed).standard_normal((len(stored_N), vocab_size))
    log_NV = logits_NV - np.log(np.exp(logits_NV).sum(1, keepdims=True))
    records_N = np.zeros(len(stored_N), teacher_dtype(top_k))
    records_N["ids"] = np.argsort(-log_NV, axis=1)[:, :top_k]
    records_N["log_probabilities"] = np.take_along_axis(log_NV, records_N["ids"].astype(np.int64), 1)
    records_N["log_probabilities"][(stored_N >= CONTEXT) | (np.arange(len(stored_N)) == 0)] = -np.inf
    return records_N


def write_manifest(folder: Path, splits: dict, tokenizer: dict | None = None, settings: dict | None = None) -> None:
    """The manifest and the report of a folder with these splits; without `tokenizer`, of one that there is not."""
    nowhere = {"path": "", "sha256": "", "vocab_size": 3, "bos_id": 1, "document_end": "</s>", "document_end_id": 2}
    facts = {
        "format_version": FORMAT_VERSION,
        "tokenizer": tokenizer or nowhere,
        "settings": settings or {"seq_len": 100, "seed": 1309},
        "sources": [{"path": "", "bytes": 0, "sha256": ""}],
        "domains": ["", "a", "b", "c", "d"],
        "splits": splits,
    }
    (folder / "manifest.json").write_text(json.dumps(facts))
    change_manifest(folder)


def change_manifest(folder: Path, **changes) -> None:
    """Set entries of a folder's manifest, and what follows from them, as if it had been prepared so."""
    facts = json.loads((folder / "manifest.json").read_text()) | changes
    facts.pop("sha256", None)
    facts["fingerprint"] = fingerprint_of(facts)
    (folder / "manifest.json").write_bytes(sealed(facts))
    report = {"fingerprint": facts["fingerprint"], "splits": facts["splits"]}
    (folder / "report.json").write_bytes(sealed(report))
