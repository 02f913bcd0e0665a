"""manifest.json of a prepared folder: what is in it, what it was made from, and a fingerprint of the latter.

The manifest is written last, so a folder without one is not a prepared folder. How it is read is in prepared.py.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from logtrain.core import still
from logtrain.core.atomic import naming
from logtrain.core.location import origin_of
from logtrain.core.printable import printable
from logtrain.core.units import size
from logtrain.data.config import CHAT_ONLY, TEXT_ONLY, PrepareConfig
from logtrain.data.files import InputFile
from logtrain.data.lost_text import refuse_empty
from logtrain.data.tokenizer_facts import TokenizerFacts, facts_for_texts, tokenizer_facts
from logtrain.observe.progress import Progress
from logtrain.text.chat_template import ChatTemplate
from logtrain.text.tokenizer import Tokenizer

FORMAT_VERSION = 3
LARGE = 1 << 30  # bytes of input that take seconds to read
NOT_SETTINGS = {"input", "tokenizer", "document_end", "template"}  # they are told elsewhere, by content
WITHOUT_EFFECT = {"output", "workers", "show"}  # on what is written


class ChatFacts(TypedDict):
    """The chat template that conversations are written with."""

    template_path: str
    template_sha256: str
    template: str
    named_tokens: dict[str, str]


class SourceFacts(TypedDict):
    """An input file."""

    path: str
    bytes: int
    sha256: str


class ShardFacts(TypedDict):
    """The arrays of a shard on the disk: names of their files, lengths and checksums."""

    tokens: str
    documents: str
    num_tokens: int
    num_documents: int
    num_targets: int
    tokens_crc32: int
    documents_crc32: int
    teacher: NotRequired[str]
    teacher_crc32: NotRequired[int]


class SplitFacts(TypedDict):
    """A split, and the shards that it consists of."""

    documents: int
    tokens: int
    targets: int
    shards: list[ShardFacts]


class Ingredients(TypedDict):
    """All that decides the output."""

    format_version: int
    tokenizer: TokenizerFacts
    settings: dict[str, Any]
    """fields of PrepareConfig by name"""
    sources: list[SourceFacts]
    chat: NotRequired[ChatFacts]


class Origin(Ingredients):
    """What a folder is made from, known before any of it is written."""

    fingerprint: str


class ReplayFacts(TypedDict):
    """What a model wrote as its own old data: the samples by what became of them."""

    model_sha256: str
    """hash of what stands for the model's folder, "" where nothing does; its weights are hashed in sources"""
    dtype: str
    """that the model computed in"""
    samples: int
    """that were drawn, numbered from 0"""
    kept: int
    dropped: dict[str, int]
    """by reason"""


class Manifest(Origin):
    """What is in a prepared folder."""

    domains: list[str]
    splits: dict[str, SplitFacts]
    held_out_groups: NotRequired[list[str]]
    """with split_by: the values of the column in the validation split"""
    replay: NotRequired[ReplayFacts]
    """of data that a model wrote: it may be trained on, and is no evidence of anything"""


def hashed(files: list[InputFile]) -> list[SourceFacts]:
    """The facts of the input files, whose every byte is read."""
    total, read = sum(file.num_bytes for file in files), 0
    still.note("hashing the input")
    with Progress("checksums", total, title="checksums", in_bytes=True, enabled=total > LARGE) as progress:

        def note(num_bytes: int) -> None:
            nonlocal read
            read += num_bytes
            progress.update(read, {"percent": round(100 * read / total, 1)})

        return [{"path": origin_of(file.path), "bytes": file.num_bytes, "sha256": file.sha256(note)} for file in files]


def read_origin(
    config: PrepareConfig,
    files: list[InputFile],
    ask: Callable[[Callable[[Tokenizer], TokenizerFacts]], TokenizerFacts] | None = None,
) -> Origin:
    """What the output of `config` depends on; reads tokenizer, template and every byte of the files. `ask` puts a
    question to the tokenizer where it is loaded already. Raises ValueError for a tokenizer or a template that does not
    do.
    """
    path, chat = origin_of(os.path.abspath(config.tokenizer)), None
    if config.is_chat:
        tokenizer = Tokenizer.load(config.tokenizer)
        refuse_empty(tokenizer)
        chat = ChatTemplate.load(tokenizer, config.template, config.date)
        facts = tokenizer_facts(tokenizer, path, chat.check_trainable())
    else:
        question = partial(facts_for_texts, path=path, document_end=config.document_end)
        facts = ask(question) if ask else question(Tokenizer.load(config.tokenizer))
    left_out = NOT_SETTINGS | WITHOUT_EFFECT | (TEXT_ONLY if chat else CHAT_ONLY)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in left_out}
    ingredients: Ingredients = {
        "format_version": FORMAT_VERSION,
        "tokenizer": facts,
        "settings": json.loads(json.dumps(settings)),  # as they will be read back: tuples are lists
        "sources": hashed(files),
    }
    if chat:
        ingredients["chat"] = chat_facts(chat)
    return {**ingredients, "fingerprint": fingerprint_of(ingredients)}


def chat_facts(chat: ChatTemplate) -> ChatFacts:
    """What a manifest says of a chat template."""
    return {
        "template_path": os.path.abspath(chat.where),
        "template_sha256": chat.sha256,
        "template": chat.source,
        "named_tokens": chat.named,
    }


def fingerprint_of(ingredients: Ingredients) -> str:
    """A hash of what the output depends on."""
    return hashlib.sha256(json.dumps(deciding(ingredients)).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    with naming(path), open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def deciding(ingredients: Ingredients) -> dict[str, Any]:
    """What the output depends on, by name. Files count by name (it may be a domain) and content, not by where they lie;
    a tokenizer and a template by content.
    """
    chat = ingredients.get("chat")
    of_chat = {"template": chat["template_sha256"], "named_tokens": chat["named_tokens"]} if chat else {}
    return {
        "format_version": ingredients["format_version"],
        "input": [[Path(source["path"]).name, source["sha256"]] for source in ingredients["sources"]],
        "tokenizer": ingredients["tokenizer"]["sha256"],
        "bos_id": ingredients["tokenizer"]["bos_id"],
        "document_end": ingredients["tokenizer"]["document_end"],
        **ingredients["settings"],
        **of_chat,
    }


def print_origin(origin: Origin) -> None:
    """Say what is about to be prepared, and with which tokens around a document."""
    tokenizer, sources = origin["tokenizer"], origin["sources"]
    files = "1 file" if len(sources) == 1 else f"{len(sources):,} files"
    bos = "no token" if tokenizer["bos_id"] is None else f"id {tokenizer['bos_id']}"
    what = "conversation" if "chat" in origin else "document"
    lines = [
        f"input: {files}, {size(sum(source['bytes'] for source in sources))}",
        f"tokenizer: {tokenizer['path']}, {tokenizer['vocab_size']:,} ids; a {what} begins with {bos} "
        f"and ends with {tokenizer['document_end']} (id {tokenizer['document_end_id']})",
    ]
    if "chat" in origin:
        lines.append(f"chat template: {origin['chat']['template_path']}, as of {origin['settings']['date']}")
    for line in lines:
        print(printable(line, one_line=True))
