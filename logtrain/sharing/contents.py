"""What a folder is, and what it was made from, as its own files say: {"parents": [...], "config": {...}, "facts":
{...}}. A parent is {role, path, sha256}, as core/lineage.py writes it: the hash finds it in a store wherever its path
leads now.
"""

import tomllib
from pathlib import Path
from typing import Any, TypedDict

from logtrain.core.checksums import check_file
from logtrain.core.lineage import LINEAGE, parent_of
from logtrain.core.origin import FILE, check_origin, origin, read_sealed_in
from logtrain.core.run_folder import SEAL, check_config
from logtrain.core.untrusted import checked, read_bytes, read_json, read_own
from logtrain.data.manifest import Manifest
from logtrain.data.prepared import read_manifest


class Parent(TypedDict):
    """What a thing was made from."""

    role: str
    path: str
    sha256: str


KINDS = {
    "manifest.json": "prepared",
    "adapter_config.json": "adapter",
    "scores.json": "evaluation",
    "config.json": "model",
    "config.toml": "run",
}
"""What a folder is that has the file."""


def kind_of(folder: Path) -> str:
    """In a word what a folder or file holds."""
    return next((kind for name, kind in KINDS.items() if (folder / name).is_file()), "data")


def lineage_of(folder: Path) -> dict[str, Any]:
    """What a folder or file was made from. Raises ValueError for files that are damaged."""
    kind = kind_of(folder)
    if kind == "prepared":
        return of_prepared(read_manifest(folder))
    if kind == "evaluation":
        return of_evaluation(folder)
    for name in (LINEAGE, "adapter_config.json", "config.json"):  # without them it would seem to be another thing
        check_file(folder / name)
    if (folder / LINEAGE).is_file():
        found = read_json(folder / LINEAGE)
        facts = facts_beside(folder, "adapter" if kind == "adapter" else "export")
        where = f"{folder / LINEAGE}: "
        parents = checked(f"{where}parents", found.get("parents", []), list[Parent])
        config = checked(f"{where}config", found.get("config", {}), dict[str, Any])
        return {"commit": found.get("commit"), "config": config, "parents": parents, "facts": facts}
    parents = []
    if kind == "adapter":
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        parents = [parent_of("model", str(base))] if base else []
    if kind == "run":
        config = read_toml(folder / "config.toml")
        parents = [parent_of(role, path) for role in ("model", "data") for path in paths(config.get(role))]
        return {"parents": parents, "config": config, "facts": {}}
    return {"parents": parents, "config": {}, "facts": {}}


def facts_beside(folder: Path, kind: str) -> dict[str, Any]:
    """What FOLDER.json tells of an export or an adapter, {} where there is none. Raises ValueError where it has changed
    since, or is that of another one: of another run, if the folder is where a run leaves it.
    """
    file = folder.parent / f"{folder.name}.json"
    wanted = origin(folder.parent, kind) if folder.name == kind else {FILE: kind}
    return check_origin(file, read_own(file), wanted) if file.is_file() else {}


def of_prepared(manifest: Manifest) -> dict[str, Any]:
    """The lineage of a prepared folder."""
    replay = manifest.get("replay")
    parents = [{"role": "text", "path": each["path"], "sha256": each["sha256"]} for each in manifest["sources"]]
    if replay:
        parents = [{**parent, "role": "model", "sha256": replay["model_sha256"]} for parent in parents]
    parents.append({"role": "tokenizer", "path": manifest["tokenizer"]["path"], "sha256": ""})
    facts = {
        name: f"{split['documents']:,} documents, {split['tokens']:,} tokens"
        for name, split in manifest["splits"].items()
    }
    return {"parents": parents, "config": manifest["settings"], "facts": facts}


def of_evaluation(folder: Path) -> dict[str, Any]:
    """The lineage of an evaluation: its models and questions, and the scores of each model."""
    config = read_toml(folder / "config.toml")
    parents = [parent_of("model", path) for path in paths(config.get("models"))]
    parents += [parent_of("questions", path) for path in paths(config.get("data"))]
    return {
        "parents": parents,
        "config": config,
        "facts": {"scores": read_sealed_in(folder / "scores.json", "scores").get("models")},
    }


def read_toml(file: Path) -> dict[str, Any]:
    """The config of a run, {} where there is none; one that others wrote has no seal. Raises ValueError where it is
    damaged.
    """
    if not file.is_file():
        return {}
    try:
        text = read_bytes(file).decode()
        return tomllib.loads(check_config(file) if text.startswith(SEAL) else text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{file}: {error}") from None


def paths(value: Any) -> list[str]:
    """The paths of a setting, which is PATH, NAME=PATH or a list of these."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [text.partition("=")[2] or text for text in texts if isinstance(text, str)]
