"""What a model wrote as prepared data: shards, report.json and manifest.json, as `prepare` leaves them, with the model
as their source. There is a split to train on alone.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from logtrain.core.lineage import standing_hash
from logtrain.core.location import origin_of
from logtrain.core.untrusted import sealed
from logtrain.data.manifest import (
    FORMAT_VERSION,
    Ingredients,
    Manifest,
    Origin,
    SplitFacts,
    chat_facts,
    fingerprint_of,
)
from logtrain.data.prepared import MANIFEST, REPORT
from logtrain.data.shards import CONTEXT, DOCUMENT, ShardWriter
from logtrain.data.tokenizer_facts import tokenizer_facts
from logtrain.generation.config import ReplayConfig
from logtrain.generation.load import ModelFolder
from logtrain.generation.sample_choice import SampleChoice
from logtrain.generation.self_replay import Frame

SHARD_TOKENS = 100_000_000
DECIDING = ("seq_len", "max_tokens", "min_tokens", "max_repeated")


def replay_origin(config: ReplayConfig, folder: ModelFolder, frame: Frame) -> Origin:
    """What the written data depends on: the model, how it was sampled and what was left out. Raises ValueError for a
    `teacher_top_k` of more tokens than there are, and for rows that the model could not be trained on.
    """
    if config.seq_len > (most := folder.shape.max_positions):
        raise ValueError(
            f"seq_len = {config.seq_len}: the model knows {most} positions, and is trained on no longer rows"
        )
    settings: dict[str, Any] = {
        "kind": "chats" if frame.is_chat else "documents",
        "tokens": config.num_tokens,
        **{name: getattr(config, name) for name in DECIDING},
        **asdict(config.sampling),
    }
    if config.teacher_top_k > folder.tokenizer.vocab_size:
        raise ValueError(f"teacher_top_k = {config.teacher_top_k}: the model has {folder.tokenizer.vocab_size} tokens")
    if config.teacher_top_k:
        settings["teacher_top_k"] = config.teacher_top_k
    if frame.is_chat:
        settings["date"] = config.date
    files = [file for of in dict.fromkeys((folder.base, folder.path)) for file in of.glob("*.safetensors")]
    weights = {
        "path": origin_of(folder.path.absolute()),
        "bytes": sum(file.stat().st_size for file in files),
        "sha256": folder.digest(),
    }
    ingredients: Ingredients = {
        "format_version": FORMAT_VERSION,
        "tokenizer": tokenizer_facts(
            folder.tokenizer, origin_of(os.path.abspath(folder.tokenizer.folder)), frame.end_id
        ),
        "settings": settings,
        "sources": [weights],  # type: ignore[list-item]
    }
    if frame.is_chat:
        ingredients["chat"] = chat_facts(folder.template)
    return {**ingredients, "fingerprint": fingerprint_of(ingredients)}


def write_replay(folder: Path, origin: Origin, choice: SampleChoice, dtype: str) -> None:
    """Write the kept samples into an empty folder, the manifest last. `dtype`: that the model computed in. Raises
    OSError.
    """
    splits = {"train": write_shards(folder, choice)}
    facts = {
        "model_sha256": standing_hash(Path(origin["sources"][0]["path"])),
        "dtype": dtype,
        "samples": choice.num_seen,
        "kept": len(choice.kept),
        "dropped": dict(choice.dropped),
    }
    manifest: Manifest = {**origin, "domains": ["replay"], "splits": splits, "replay": facts}  # type: ignore[typeddict-item]
    counts = {kind: splits["train"][kind] for kind in ("documents", "tokens", "targets")}
    report: Mapping[str, Any] = {"fingerprint": origin["fingerprint"], "splits": {"train": counts}, "replay": facts}
    (folder / REPORT).write_bytes(sealed({**report}))
    (folder / MANIFEST).write_bytes(sealed({**manifest}))


def write_shards(folder: Path, choice: SampleChoice) -> SplitFacts:
    """Write the kept samples into an empty folder; -> what the manifest says of them. Raises OSError."""
    writer = ShardWriter(folder, "train", SHARD_TOKENS, choice.config.teacher_top_k)
    for number, tokens_N in choice.kept.items():
        record = np.zeros(1, DOCUMENT)
        record["length"], record["row"] = len(tokens_N), number
        record["targets"] = np.count_nonzero(tokens_N[1:] < CONTEXT)
        writer.add(tokens_N, record, choice.teachers.get(number))
    return writer.close()
