"""A command as a storm meets it: its flags, and what of the things that it leaves must be the same however often it was
interrupted. Which there are is in stages.py.
"""

import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from logtrain.core.untrusted import read_sealed

EXACT = ("step", "epoch", "loss", "grad_norm", "lr", "tokens", "targets", "set", "valid_loss", "valid_targets")
SEQ_LEN, STEPS = 64, 8
SCORED = ("scores.json", "samples.jsonl", "compare.html")  # answers are kept in the order in which they came
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
    """what finds the line that tells of a change which is not refused, a regular expression"""


def digest(path: Path) -> str:
    """The hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def facts_digest(path: Path) -> str:
    """The hash of what a sealed file says, but for its run, which another place is another one."""
    facts = read_sealed(path) | {"run": ""}
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def files_of(folder: Path) -> Result:
    """Digests of all files below a folder."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): digest(path) for path in found}


def series(run: Path) -> str:
    """What the steps of a run gave, without what the clock and the machine gave."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return str([{key: record[key] for key in EXACT if key in record} for record in records])


def of_run(run: Path) -> Result:
    """Of a training: its series, its last checkpoint and what it published."""
    found = {"series": series(run)}
    found |= {name: digest(run / name) for name in ("export.json", "forgetting.json") if (run / name).exists()}
    last = run / "checkpoints" / f"step-{STEPS:06d}"
    for folder in (run / "export", run / "adapter", last):
        found |= {f"{folder.name}/{name}": value for name, value in files_of(folder).items()} if folder.is_dir() else {}
    facts = read_sealed(last / "checkpoint.json")  # its seal is over what the clock gave, too
    crc32 = facts["state"].pop("records_crc32")
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    knows = crc32 in itertools.accumulate(lines, lambda crc, line: zlib.crc32(line, crc), initial=0)
    return found | {f"{last.name}/checkpoint.json": f"{facts}, its records are{'' if knows else ' not'} there"}


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
    """The versions, but for when and by whom they were pushed, and their files."""
    named = {str(file.relative_to(store)): read_sealed(file) for file in sorted(store.glob("versions/*/*.json"))}
    there = {of["sha256"] for version in named.values() for of in version["files"].values()}
    objects = {digest(store / "objects" / sha256[:2] / sha256) for sha256 in there}
    told = {name: str(version | {"created": "", "writer": ""}) for name, version in named.items()}
    return told | {"objects": str(sorted(objects))}


def of_benchmark(run: Path) -> Result:
    names = ("benchmark.json", "benchmark.html", *(f"own/{name}" for name in SCORED))
    return {name: (facts_digest if name.endswith(".json") else digest)(run / name) for name in names}


def of_file(file: Path) -> Result:
    return {file.name: digest(file)}


def of_output(_: Path) -> Result:
    """Of what only tells."""
    return {"told": Path("../output").read_text()}


def of_trace(_: Path) -> Result:
    """Of a trace, but for its first line, which says how much of the run's records there was to compare."""
    return {"told": str(Path("../output").read_text().splitlines()[1:])}


def of_page(page: Path) -> Result:
    """Of a report, but for the moment that it is of, and how long ago the run ended."""
    return {"page": re.sub(r"as of [^;]*;|finished [^<]* ago", "", page.read_text())}


def of_status(_: Path) -> Result:
    """Of a status, but for how long ago things were."""
    return {"told": re.sub(r"[^ ]+( min| h| s| days)? ago", "", Path("../output").read_text())}


def of_evaluation(run: Path) -> Result:
    return {name: (facts_digest if name.endswith(".json") else digest)(run / name) for name in SCORED}
