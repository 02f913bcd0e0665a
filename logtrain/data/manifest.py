"""What a prepared folder was made from: the beginning of its manifest, its fingerprint, and what has changed since."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

from logtrain.data.files import InputFile
from logtrain.data.shards import FORMAT_VERSION, read_manifest
from logtrain.text.chat_template import ChatTemplate
from logtrain.text.tokenizer import Tokenizer

ELSEWHERE = {"input", "tokenizer", "document_end", "template", "output", "workers", "show"}  # or without effect on it
TEXT_ONLY = {"document_end", "text_chars"}  # settings of continual pretraining
CHAT_ONLY = {"train_on", "too_long", "template", "date"}  # of fine-tuning


def begin_manifest(config, files: list[InputFile]) -> dict:
    """All that decides the output, known before any of it is written. `config`: a PrepareConfig."""
    places = Counter(file.path.resolve() for file in files)
    if repeated := [str(path) for path, times in places.items() if times > 1]:
        raise ValueError(f"input: given more than once: {', '.join(repeated)}")
    tokenizer = Tokenizer.load(config.tokenizer)
    chat = ChatTemplate.load(tokenizer, config.template, config.date) if config.is_chat else None
    end_id = chat.end_id if chat else tokenizer.document_end(config.document_end)
    elsewhere = ELSEWHERE | (TEXT_ONLY if chat else CHAT_ONLY)
    manifest = {
        "format_version": FORMAT_VERSION,
        "tokenizer": {
            "path": os.path.abspath(config.tokenizer),
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "document_end": next(text for text, id in tokenizer.special_tokens().items() if id == end_id),
            "document_end_id": end_id,
        },
        "settings": {name: value for name, value in dataclasses.asdict(config).items() if name not in elsewhere},
        "sources": [{"path": str(file.path), "bytes": file.num_bytes, "sha256": sha256(file.path)} for file in files],
    }
    if chat:
        manifest["chat"] = {
            "template_path": os.path.abspath(chat.where),
            "template_sha256": chat.sha256,
            "template": chat.source,
            "named_tokens": chat.named,
        }
    manifest["fingerprint"] = hashlib.sha256(json.dumps(deciding(manifest)).encode()).hexdigest()
    return json.loads(json.dumps(manifest))  # as it will be read back: tuples are lists


def sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def deciding(manifest: dict) -> dict:
    """What the output depends on. Files count by name (it may be a domain) and content, not by where they lie."""
    chat = manifest.get("chat")
    of_chat = {"template": chat["template_sha256"], "named_tokens": chat["named_tokens"]} if chat else {}
    return {
        "format_version": manifest["format_version"],
        "input": [[Path(source["path"]).name, source["sha256"]] for source in manifest["sources"]],
        "tokenizer": manifest["tokenizer"]["sha256"],
        "bos_id": manifest["tokenizer"]["bos_id"],
        "document_end": manifest["tokenizer"]["document_end"],
        **manifest["settings"],
        **of_chat,
    }


def check_same(output: Path, manifest: dict) -> None:
    """Raises ValueError if `output` was prepared from something else than `manifest` says, naming what."""
    there = read_manifest(output)
    if there["fingerprint"] == manifest["fingerprint"]:
        return
    was, now = deciding(there), deciding(manifest)
    differing = []
    for name in now if was.keys() == now.keys() else ("format",):  # text there and a chat now, or the other way round
        if name == "input" and was[name] != now[name]:
            changed = [file for file, digest in now[name] if [file, digest] not in was[name]]
            differing.append(f"input ({', '.join(changed) or 'fewer files, or another order'})")
        elif was.get(name) != now[name]:
            is_hash = name in ("tokenizer", "template")
            differing.append(name if is_hash else f"{name} ({was.get(name)} there, {now[name]} now)")
    raise ValueError(f"{output}: was prepared with other {', '.join(differing)}; delete it, or give another --output")


def describe(manifest: dict) -> None:
    tokenizer, sources = manifest["tokenizer"], manifest["sources"]
    files = "1 file" if len(sources) == 1 else f"{len(sources):,} files"
    print(f"input: {files}, {sum(source['bytes'] for source in sources) / 1e6:,.1f} MB")
    bos = "no token" if tokenizer["bos_id"] is None else f"id {tokenizer['bos_id']}"
    what = "conversation" if "chat" in manifest else "document"
    print(
        f"tokenizer: {tokenizer['path']}, {tokenizer['vocab_size']:,} ids; a {what} begins with {bos} "
        f"and ends with {tokenizer['document_end']} (id {tokenizer['document_end_id']})"
    )
    if "chat" in manifest:
        print(f"chat template: {manifest['chat']['template_path']}, as of {manifest['settings']['date']}")
