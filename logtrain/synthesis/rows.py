"""What a synthesis leaves: rows by split, what was rejected, a report, and a manifest. All follow from chunks and
journal alone, and are written anew at the end of every run, each file whole or not at all.

    train.jsonl           rows; valid.jsonl: later ones of the same systems; valid_systems.jsonl: of other systems
    rejected.jsonl        each rejected answer with its reason, and rows left out as near-duplicates
    report.json           counts and costs
    manifest.json         the teacher, the prompts, the logs, and a hash of every file
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import orjson

from logtrain.core.atomic import write_file
from logtrain.core.lineage import commit
from logtrain.data.manifest import sha256
from logtrain.data.twins import Twins
from logtrain.synthesis.checking import judge
from logtrain.synthesis.chunks import Chunks, NearTwins, Split
from logtrain.synthesis.config import SynthesiseConfig
from logtrain.synthesis.journal import FILE, Answer, read_journal
from logtrain.synthesis.prompts import Prompts
from logtrain.synthesis.run import Job
from logtrain.synthesis.tally import Tally
from logtrain.text.chat_template import Turn

SPLITS: tuple[Split, ...] = get_args(Split)
NAMES_OF_ROLES = {"user": "human", "assistant": "gpt"}
DUPLICATE = "near_duplicate"


class Results(NamedTuple):
    """Rows and rejected answers."""

    rows: dict[Split, list[bytes]]
    rejected: list[dict[str, Any]]
    """in the order of jobs"""
    counts: Counter[tuple[str, str, str]]
    """of kept rows by (task, system, split)"""
    num_duplicates: int


def results(config: SynthesiseConfig, folder: Path, jobs: Sequence[Job]) -> Results:
    """Look at all answers of a journal: the first of a job that is not rejected is its row, unless its answers are near
    those of an earlier row.
    """
    kept: dict[int, Answer] = {}
    rejected: list[Answer] = []
    for event in read_journal(folder, len(jobs)):
        if isinstance(event, Answer) and event.rejected:
            rejected.append(event)
        elif isinstance(event, Answer):
            kept.setdefault(event.job, event)
    found = Results({split: [] for split in SPLITS}, [as_rejected(jobs, answer) for answer in rejected], Counter(), 0)
    seen, duplicates = NearTwins(), 0
    for number, answer in sorted(kept.items()):
        job = jobs[number]
        turns = judge(config, job.task, job.chunk, job.question, answer.text, answer.finish).turns
        said = "\n".join(turn.content for turn in turns if turn.role == "assistant")
        # Only of free text: two lists of anomalies, or two empty ones, may well be alike.
        if job.task.form != "json" and not seen.add(Twins.of([said], b"").signatures_I[0]):
            duplicates += 1
            found.rejected.append(as_rejected(jobs, answer, f"{DUPLICATE}: of an earlier row"))
            continue
        found.rows[job.chunk.split].append(orjson.dumps(as_row(config, job, turns), option=orjson.OPT_APPEND_NEWLINE))
        found.counts[job.task.name, job.chunk.system, job.chunk.split] += 1
    found.rejected.sort(key=lambda one: (one["job"], one["attempt"]))
    return found._replace(num_duplicates=duplicates)


def as_row(config: SynthesiseConfig, job: Job, turns: Iterable[Turn]) -> dict[str, Any]:
    """A row of data. Beside what prepare reads it has numbers alone, which prepare leaves out."""
    where = {"domain": job.chunk.system, "job": job.number, "line": job.chunk.first_line}
    if config.rows == "nlplog":
        question, answer = turns
        return {"instruction": question.content, "log": job.chunk.text, "output": answer.content, **where}
    if config.rows == "sharegpt":
        listed = [{"from": NAMES_OF_ROLES[turn.role], "value": turn.content} for turn in turns]
        return {"conversations": listed, **where}
    return {"messages": [turn._asdict() for turn in turns], **where}


def as_rejected(jobs: Sequence[Job], answer: Answer, reason: str = "") -> dict[str, Any]:
    """A rejected answer, as its file has it."""
    job = jobs[answer.job]
    where = {"job": answer.job, "attempt": answer.attempt, "task": job.task.name, "system": job.chunk.system}
    return {**where, "reason": reason or answer.rejected, "question": job.question, "answer": answer.text}


def report(jobs: Sequence[Job], chunks: Chunks, tally: Tally, found: Results, ended: str) -> dict[str, Any]:
    """Counts and costs."""
    tasks = list(dict.fromkeys(job.task.name for job in jobs))
    systems = list(dict.fromkeys(chunk.system for chunk in chunks.chunks))
    num_rows = {split: len(found.rows[split]) for split in SPLITS}
    total = sum(num_rows.values())
    return {
        "ended": ended or "all rows were asked for",
        "chunks": {
            "kept": len(chunks.chunks),
            "left_out": dict(sorted(chunks.left_out.items())),
            "by_split": dict(Counter(chunk.split for chunk in chunks.chunks)),
        },
        "jobs": {"all": len(jobs), "done": len(tally.done), "kept": len(tally.kept)},
        "rows": {**num_rows, "all": total, DUPLICATE: found.num_duplicates},
        "by_task": {task: sum(n for key, n in found.counts.items() if key[0] == task) for task in tasks},
        "by_system": {system: sum(n for key, n in found.counts.items() if key[1] == system) for system in systems},
        **tally.facts(),
        "tokens_per_row": round(tally.tokens / total, 1) if total else None,
        "dollars_per_row": round(tally.dollars / total, 6) if total else None,
    }


def write_results(
    folder: Path,
    config: SynthesiseConfig,
    prompts: Prompts,
    chunks: Chunks,
    teacher: dict[str, Any],
    found: Results,
    told: dict[str, Any],
) -> None:
    """Write all files, the manifest last. Raises OSError."""
    for split in SPLITS:
        write_file(folder / f"{split}.jsonl", b"".join(found.rows[split]))
    write_file(folder / "rejected.jsonl", b"".join(lines_of(found.rejected)))
    write_file(folder / "report.json", as_json(told))
    names = [*(f"{split}.jsonl" for split in SPLITS), "rejected.jsonl", "report.json", FILE, "chunks.jsonl"]
    manifest = {
        "format": config.rows,
        "commit": commit(),
        "teacher": {**teacher, "max_new_tokens": config.max_new_tokens, "sampling": vars(config.sampling)},
        "prompts": {
            "file": prompts.path,
            "sha256": prompts.sha256,
            "role": prompts.role,
            "tasks": {
                task.name: {"teacher": task.teacher, "ask": task.ask, "form": task.form} for task in prompts.tasks
            },
        },
        "logs": [{"system": system, "file": path, "sha256": sha256(Path(path))} for system, path in config.systems()],
        "chunks_sha256": chunks.sha256,
        "seed": config.seed,
        "files": {name: sha256(folder / name) for name in names},
    }
    write_file(folder / "manifest.json", as_json(manifest))


def lines_of(values: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Each object on a line."""
    return (orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE) for value in values)


def as_json(value: dict[str, Any]) -> bytes:
    """An object over several lines."""
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
