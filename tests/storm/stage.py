"""A command as a storm meets it: its flags, and what of the things that it leaves must be the same however often it was
interrupted. Which there are is in stages.py.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

EXACT = ("step", "epoch", "loss", "grad_norm", "lr", "tokens", "targets", "set", "valid_loss", "valid_targets")
SEQ_LEN, STEPS = 64, 8
BUT = {"base_model.json": "path", "lineage.json": "commit"}  # what may differ in a file
Result = dict[str, str]
"""what a stage has left: name -> digest"""


@dataclass(frozen=True)
class Stage:
    name: str
    entry: str
    flags: tuple[str, ...]
    """relative to the ground; {server}: the address of the ground's server"""
    leaves: str
    """the thing that it writes"""
    result: Callable[[Path], Result]
    resumes: tuple[str, ...] = ()
    """flags with which it goes on where it was interrupted; without, the same command is given again"""
    ranks: int = 1
    beside: tuple[str, ...] = ()
    """what it writes elsewhere, as patterns"""
    half: str = ""
    """what it leaves when it is stopped on its way, if not `leaves`"""
    tells: str = ""
    """a part of the line that tells of a change which is not refused"""


def digest(path: Path) -> str:
    return hashlib.sha256(content_of(path)).hexdigest()[:16]


def content_of(path: Path) -> bytes:
    """A file's bytes, but for the program's commit, for the way from an adapter to its base, which is longer from a
    disk of its own, and for the hashes of a parent's file, where white space is enough for another.
    """
    if path.name in BUT:
        facts = json.loads(path.read_text()) | {BUT[path.name]: ""}
        parents = [parent | {"sha256": ""} for parent in facts.get("parents", [])]
        return json.dumps(facts | {"parents": parents}).encode()
    if path.name == "chunks.jsonl":  # is made again where a line is missing, not where its end is
        return path.read_bytes().removesuffix(b"\n")
    if path.name == "checksums.json":
        facts = json.loads(path.read_text())
        for name in BUT:
            facts["files"].pop(name, None)
        del facts["sha256"]  # the hash of the whole
        return json.dumps(facts).encode()
    return path.read_bytes()


def files_of(folder: Path, *but: str) -> Result:
    """Digests of all files below a folder, without those of these names."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in but)
    return {str(path.relative_to(folder)): digest(path) for path in found}


def series(run: Path) -> str:
    """What the steps of a run gave, without what the clock and the machine gave."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return str([{key: record[key] for key in EXACT if key in record} for record in records])


def of_run(run: Path) -> Result:
    """Of a training: its series, its last checkpoint and what it published."""
    found = {"series": series(run)}
    found |= {name: digest(run / name) for name in ("export.json", "forgetting.json") if (run / name).exists()}
    for folder in (run / "export", run / "adapter", run / "checkpoints" / f"step-{STEPS:06d}"):
        found |= {f"{folder.name}/{name}": value for name, value in files_of(folder).items()} if folder.is_dir() else {}
    last = f"step-{STEPS:06d}/checkpoint.json"
    facts = json.loads((run / "checkpoints" / last).read_text())
    del facts["sha256"], facts["state"]["records_crc32"]  # records hold what the clock gave
    return found | {last: str(facts)}


def of_dpo(run: Path) -> Result:
    """Of a training on pairs: the numbers of its reference, too."""
    return of_run(run) | {file.name: digest(file) for file in Path("pairs").glob("reference-*")}


def of_synthesis(run: Path) -> Result:
    """Rows, and how many; what they cost depends on the requests that were lost."""
    names = ("train.jsonl", "valid.jsonl", "valid_systems.jsonl", "chunks.jsonl", "rejected.jsonl")
    told = json.loads((run / "report.json").read_text())
    return {name: digest(run / name) for name in names} | {
        name: str(told[name]) for name in ("rows", "by_task", "chunks")
    }


def of_judgement(folder: Path) -> Result:
    return {"judge.json": digest(folder.with_suffix(".json"))}


def of_store(store: Path) -> Result:
    """The files of each version; when and by whom it was pushed differs."""
    versions = sorted(store.glob("versions/*/*.json"))
    named = {str(file.relative_to(store)): json.loads(file.read_text())["files"] for file in versions}
    there = {of["sha256"] for files in named.values() for of in files.values()}
    objects = {digest(store / "objects" / sha256[:2] / sha256) for sha256 in there}
    return {name: str(files) for name, files in named.items()} | {"objects": str(sorted(objects))}


def of_benchmark(run: Path) -> Result:
    return {"benchmark.json": digest(run / "benchmark.json")}


def of_file(file: Path) -> Result:
    return {file.name: digest(file)}


def of_output(_: Path) -> Result:
    """Of what only tells, but for its first line, which says how much of the run's records there was to compare."""
    return {"told": str(Path("../output").read_text().splitlines()[1:])}


def of_nothing(_: Path) -> Result:
    """Of what tells of times."""
    return {}


def of_evaluation(run: Path) -> Result:
    return {name: digest(run / name) for name in ("scores.json", "samples.jsonl")}
