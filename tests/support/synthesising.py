"""Small logs, a teacher's answers to questions about them, and runs of a synthesis."""

import json
import random
from pathlib import Path
from typing import Any

from logtrain.synthesise import main
from tests.support.teacher import Say, TeacherServer

SYLLABLES = [
    a + b
    for a in ("ba", "ke", "li", "mo", "nu", "ra", "so", "ti", "wu", "za")
    for b in ("den", "for", "lin", "mer", "tal")
]


def words(draws: random.Random, count: int) -> str:
    """Words that no other text has in this order."""
    return " ".join(draws.choice(SYLLABLES) + draws.choice(SYLLABLES) for _ in range(count))


def write_log(path: Path, num_lines: int, seed: int = 0) -> Path:
    """A log of which no two chunks are near-twins."""
    draws = random.Random(f"{path.name} {seed}")
    lines = [
        f"Dec 10 06:{n // 60 % 60:02}:{n % 60:02} host{seed} {words(draws, 6)} id={1000 + n}\n"
        for n in range(num_lines)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def log_in(asked: dict[str, Any]) -> list[str]:
    """The lines that the teacher was asked about."""
    return asked["messages"][1]["content"].partition("<log>\n")[2].partition("\n</log>")[0].splitlines()


def good(asked: dict[str, Any], count: int = 0) -> Say:
    """An answer that is kept, different for each prompt and each count."""
    text = asked["messages"][1]["content"]
    draws = random.Random(f"{text} {count}")
    plain = f"The log is about this and it shows what was done: {words(draws, 40)}."
    if '"turns"' in text:
        turns = [
            {"question": f"What is {words(draws, 4)}?", "answer": f"It is the {words(draws, 12)}."} for _ in range(3)
        ]
        return Say(json.dumps({"turns": turns}))
    if '"anomalies"' in text:
        found = {"line": log_in(asked)[0], "kind": "rare", "severity": "low", "reason": f"This is {words(draws, 8)}."}
        return Say(f"Here it is:\n```json\n{json.dumps({'anomalies': [found]})}\n```")
    return Say(plain)


def flags_for(folder: Path, fake: TeacherServer | None, logs: list[str], *more: str) -> list[str]:
    """The flags of a run in `folder`."""
    server = ["--base_url", fake.url, "--teacher", "wise"] if fake else []
    sizes = ["--least_lines", "5", "--most_lines", "9"]
    return ["--input", *logs, "--run", str(folder), *server, *sizes, *more]


def synthesise(folder: Path, fake: TeacherServer | None, logs: list[str], *more: str) -> int:
    """A run; -> its exit status."""
    return main(flags_for(folder, fake, logs, *more))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of all splits."""
    names = ("train", "valid", "valid_systems")
    return [json.loads(line) for name in names for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def report_of(folder: Path) -> dict[str, Any]:
    """Its report."""
    return json.loads((folder / "report.json").read_text())
