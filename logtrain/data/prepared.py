"""A prepared folder as it is found: its manifest and its report are held against their seals, against each other and
against what follows from them, so that neither a bit that flips on the disk nor an edit by hand goes unseen.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from logtrain.core.untrusted import OtherFields, checked, json_object, read_bytes, read_sealed, unsealed
from logtrain.data.config import MOST_TOP_K
from logtrain.data.manifest import FORMAT_VERSION, Manifest, Origin, deciding, fingerprint_of
from logtrain.text.tokenizer import Tokenizer

SPLITS = ("train", "valid", "valid_seen")
MANIFEST, REPORT = "manifest.json", "report.json"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a complete prepared folder. Raises ValueError where there is none, or it or the report has been
    damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such prepared folder")
    file = folder / MANIFEST
    if not file.exists():
        raise ValueError(f"{folder}: not a prepared folder (no {MANIFEST}); run logtrain.prepare with this --output")
    try:
        manifest = checked_manifest(file)
        check_report(folder / REPORT, manifest)
    except ValueError as error:
        raise ValueError(f"{error}; prepare the folder again") from None
    return manifest


def checked_manifest(file: Path) -> Manifest:
    """What the file holds. Raises ValueError where that is no manifest, or not the one that was written."""
    content = read_bytes(file)
    facts = json_object(file, content, "a manifest")
    version = facts.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{file}: format version {str(version)[:20]}, this program reads {FORMAT_VERSION}")
    try:
        manifest: Manifest = checked(f"{file}: manifest", unsealed(file, facts, content), Manifest)
    except OtherFields as other:
        raise ValueError(f"{file}: {other.told()}") from None
    for problem in problems_of(manifest):
        raise ValueError(f"{file}: {problem}")
    return manifest


def problems_of(manifest: Manifest) -> list[str]:
    """What does not fit together in a manifest."""
    tokenizer, settings, found = manifest["tokenizer"], manifest["settings"], []
    needed: dict[str, type] = {"seq_len": int, "seed": int} | ({"date": str} if "chat" in manifest else {})
    found += [f"settings.{name} is missing" for name, kind in needed.items() if type(settings.get(name)) is not kind]
    if fingerprint_of(manifest) != manifest["fingerprint"]:
        found.append("fingerprint is not that of the tokenizer, the settings and the sources")
    if "chat" in manifest and sha256_of(manifest["chat"]["template"]) != manifest["chat"]["template_sha256"]:
        found.append("chat.template_sha256 is not that of chat.template")
    for name in ("bos_id", "document_end_id"):
        if (
            not (name == "bos_id" and tokenizer[name] is None)
            and not 0 <= (tokenizer[name] or 0) < tokenizer["vocab_size"]
        ):
            found.append(f"tokenizer.{name} = {tokenizer[name]} is none of {tokenizer['vocab_size']:,} ids")
    top_k = settings.get("teacher_top_k")
    if top_k is not None and (type(top_k) is not int or not 2 <= top_k <= MOST_TOP_K):
        found.append(f"settings.teacher_top_k is no whole number from 2 to {MOST_TOP_K}")
    for name, split in manifest["splits"].items():
        found += [f"splits.{name}: {problem}" for problem in problems_of_split(name, split, top_k is not None)]
    return found


def problems_of_split(name: str, split: Mapping[str, Any], has_teacher: bool) -> list[str]:
    """What does not fit together in the SplitFacts of a split. `has_teacher`: whether a teacher's distribution is to
    stand beside its tokens.
    """
    found = [] if name in SPLITS else ["no split has this name"]
    for i, shard in enumerate(split["shards"]):
        if any((key in shard) != has_teacher for key in ("teacher", "teacher_crc32")):
            found.append(f"shard {i} and settings.teacher_top_k do not agree on whether there is a teacher")
            continue
        for kind in ("tokens", "documents", "teacher")[: 2 + has_teacher]:
            if shard[kind] != f"{name}-{i:05d}.{kind}.npy":
                found.append(f"{shard[kind][:80]!r} is not the name of shard {i}")
    for kind in ("documents", "tokens", "targets"):
        counts = [shard[f"num_{kind}"] for shard in split["shards"]]
        if min(counts, default=0) < 0 or sum(counts) != split[kind]:
            found.append(f"{kind} = {split[kind]}, but its shards have {sum(counts)}")
    return found


def check_report(file: Path, manifest: Manifest) -> None:
    """Raises ValueError for a report that has changed, or that is of another folder."""
    report = read_sealed(file, "a report")
    if report.get("fingerprint") != manifest["fingerprint"]:
        raise ValueError(f"{file}: is the report of another folder than the manifest beside it")
    splits: dict[str, dict[str, Any]] = checked("splits", report.get("splits"), dict[str, dict[str, Any]])
    if count(splits) != count(manifest["splits"]):
        raise ValueError(f"{file}: counts other documents than the manifest beside it")


def count(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What both files say of each split."""
    return {name: [split.get(kind) for kind in ("documents", "tokens", "targets")] for name, split in splits.items()}


def check_tokenizer(folder: str | Path, manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Raises ValueError where the manifest tells other facts of its tokenizer than this one, which is the same file."""
    facts = manifest["tokenizer"]
    found = (tokenizer.special_tokens().get(facts["document_end"]), tokenizer.vocab_size)
    if found != (facts["document_end_id"], facts["vocab_size"]):
        raise ValueError(
            f"{folder}: its manifest has {facts['document_end']} = {facts['document_end_id']} of "
            f"{facts['vocab_size']} ids, its tokenizer {found[0]} of {found[1]}; prepare the folder again"
        )


def sha256_of(text: str) -> str:
    """The SHA-256 of a text, as hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def refuse_other_origin(output: Path, origin: Origin) -> None:
    """Raises ValueError if `output` was prepared from something else than `origin` says, naming what."""
    there = read_manifest(output)
    if there["fingerprint"] == origin["fingerprint"]:
        return
    was, now = deciding(there), deciding(origin)
    differing = []
    names: Iterable[str] = now
    if was.keys() != now.keys():  # text there and a chat now, or the other way round, or written by a model
        kinds = [name for name in ("format", "kind") if was.get(name) != now.get(name)]
        names = kinds or sorted(was.keys() ^ now.keys())
    for name in names:
        if name == "input" and was[name] != now[name]:
            changed = [file for file, digest in now[name] if [file, digest] not in was[name]]
            differing.append(f"input ({', '.join(changed) or 'fewer files, or another order'})")
        elif was.get(name) != now.get(name):
            is_hash = name in ("tokenizer", "template")
            differing.append(name if is_hash else f"{name} ({was.get(name)} there, {now.get(name)} now)")
    raise ValueError(f"{output}: was prepared with other {', '.join(differing)}; delete it, or give another --output")
