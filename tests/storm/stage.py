"""The commands as a storm meets them: a stage is one command with its flags, the things that it reads, and what of the
things that it leaves must be the same however often it was interrupted.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

EXACT = ("step", "epoch", "loss", "grad_norm", "lr", "tokens", "targets", "set", "valid_loss", "valid_targets")
SEQ_LEN, STEPS = 64, 8
Result = dict[str, str]
"""what a stage has left: name -> digest"""


@dataclass(frozen=True)
class Stage:
    name: str
    entry: str
    flags: tuple[str, ...]
    """relative to the ground"""
    reads: tuple[str, ...]
    """the things of the ground that it reads"""
    leaves: str
    """the thing that it writes"""
    result: Callable[[Path], Result]
    resumes: tuple[str, ...] = ()
    """flags with which it goes on where it was interrupted; without, the same command is given again"""
    ranks: int = 1
    again: str = ""
    """the same from the beginning, where `leaves` is there already: the thing to start from"""


def digest(path: Path) -> str:
    return hashlib.sha256(content_of(path)).hexdigest()[:16]


def content_of(path: Path) -> bytes:
    """A file's bytes, but for the way from an adapter to its base, which is longer from a disk of its own."""
    if path.name == "base_model.json":
        return json.dumps(json.loads(path.read_text()) | {"path": ""}).encode()
    if path.name == "checksums.json" and (path.parent / "base_model.json").exists():
        facts = json.loads(path.read_text())
        del facts["files"]["base_model.json"], facts["sha256"]  # the second is the hash of the whole
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
    found = {"series": series(run), "export.json": digest(run / "export.json")}
    for folder in (run / "export", run / "adapter", run / "checkpoints" / f"step-{STEPS:06d}"):
        found |= {f"{folder.name}/{name}": value for name, value in files_of(folder).items()} if folder.is_dir() else {}
    last = f"step-{STEPS:06d}/checkpoint.json"
    facts = json.loads((run / "checkpoints" / last).read_text())
    del facts["sha256"], facts["state"]["records_crc32"]  # records hold what the clock gave
    return found | {last: str(facts)}


def of_model(folder: Path) -> Result:
    return files_of(folder)


def of_data(folder: Path) -> Result:
    return files_of(folder)


def of_evaluation(run: Path) -> Result:
    return {name: digest(run / name) for name in ("scores.json", "samples.jsonl")}


def training(name: str, data: str, *more: str) -> tuple[str, ...]:
    fixed = ("--name", name, "--runs", "runs", "--model", "model", "--data", data, "--optim.lr", "1e-3")
    loader = ("--loader.seq_len", str(SEQ_LEN), "--loader.rows_per_step", "2", "--trainer.max_steps", str(STEPS))
    every = ("--trainer.epochs", "9", "--trainer.log_every", "1", "--trainer.save_every", "2", "--trainer.keep", "2")
    return (*fixed, *loader, *every, "--trainer.valid_every", "4", *more)


def preparing(source: str, output: str, *more: str) -> tuple[str, ...]:
    fixed = ("--input", source, "--tokenizer", "model", "--output", output, "--seq_len", str(SEQ_LEN))
    return (*fixed, "--valid_fraction", "0.2", "--workers", "1", *more)


EVALUATE = ("--models", "base=model", "cpt=runs/cpt/export", "sft=runs/sft/adapter", "--data", "test.json")
EVALUATE += ("--format", "alpaca", "--run", "evaluation", "--max_new_tokens", "8", "--perplexity", "own=text.json")
AUTO = ("--resume", "auto")
LORA = ("--lora.rank", "2", "--lora.alpha", "4")
STAGES = {
    stage.name: stage
    for stage in (
        Stage("prepare", "logtrain.prepare", preparing("text.json", "data"), ("model", "text.json"), "data", of_data),
        Stage(
            *("prepare chats", "logtrain.prepare", preparing("chats.json", "chats", "--format", "alpaca")),
            *(("model", "chats.json"), "chats", of_data),
        ),
        Stage("cpt", "logtrain.cpt", training("cpt", "data"), ("model", "data"), "runs/cpt", of_run, AUTO),
        Stage(
            *("cpt on 2 ranks", "logtrain.cpt", training("two", "data", "--parallel.timeout", "3")),
            *(("model", "data"), "runs/two", of_run, AUTO, 2),
        ),
        Stage("sft", "logtrain.sft", training("sft", "chats", *LORA), ("model", "chats"), "runs/sft", of_run, AUTO),
        Stage(
            *("export", "logtrain.export", ("--run", "runs/cpt", "--output", "exported")),
            *(("model", "data", "runs/cpt"), "exported", of_model),
        ),
        Stage(
            *("merge", "logtrain.merge", ("--model", "model", "--adapter", "runs/sft/adapter", "--output", "merged")),
            *(("model", "runs/sft"), "merged", of_model),
        ),
        Stage(
            *("evaluate", "logtrain.evaluate", EVALUATE),
            *(("model", "runs/cpt", "runs/sft", "test.json", "text.json"), "evaluation", of_evaluation, AUTO),
        ),
    )
}
