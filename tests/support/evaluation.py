"""Evaluations for tests: small chat models, a test set, and what a run leaves."""

import json
from pathlib import Path

import torch

from logtrain import evaluate
from logtrain.core.untrusted import read_sealed
from logtrain.text.tokenizer import Tokenizer
from tests.support import chats
from tests.support.synthetic import write_model

NEW = 12  # tokens of an answer at most
TASKS = ("cause", "meaning")
ROWS = [
    {
        "instruction": f"why error {i}",
        "input": "disk 10.0.0.1" * (i % 3),
        "output": f"because disk {i}",
        "domain": TASKS[i % 2],
    }
    for i in range(11)
]


def write_chat_model(folder: Path, seed_of: float) -> Path:
    """A random model with the small chat tokenizer; `seed_of`: size of its weights, so that models differ."""
    end = Tokenizer.load(chats.write_tokenizer(folder)).token_id("<|eot|>")
    write_model(folder, vocab_size=420, initializer_range=seed_of, tie_word_embeddings=True, eos_token_id=end)
    return chats.write_tokenizer(folder)


def flags(models: dict[str, Path], data: Path, run: Path, *more: str) -> list[str]:
    """Arguments of an evaluation of `models` on the alpaca rows of `data`."""
    named = [f"{name}={path}" for name, path in models.items()]
    fixed = ["--data", str(data), "--format", "alpaca", "--run", str(run), "--max_new_tokens", str(NEW)]
    return ["--models", *named, *fixed, *more]


def evaluated(arguments: list[str]) -> int:
    """The entry's exit status. What an error leaves to the end of the process, its process group, ends here."""
    try:
        return evaluate.main(arguments)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def read(run: Path) -> tuple[dict, list[dict]]:
    """scores.json and samples.jsonl."""
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return json.loads((run / "scores.json").read_text()), samples


def results(run: Path) -> tuple[dict, bytes]:
    """All of scores.json, but for which run it is, and the bytes of samples.jsonl."""
    facts = read_sealed(run / "scores.json")
    assert facts.pop("file") == "scores" and len(facts.pop("run")) == 12
    return facts, (run / "samples.jsonl").read_bytes()


def num_answers(run: Path) -> int:
    """Lines that have been written, torn ones too."""
    return sum(file.read_bytes().count(b"\n") for file in (run / "answers").glob("*.jsonl"))
