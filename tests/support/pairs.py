"""Pairs of answers for tests: rows of files, and prepared folders of them for a small model that chats."""

import json
import random
from pathlib import Path

from logtrain import prepare
from tests.support.preparing import Inline

PROMPTS = ["why error", "disk why", "error disk error", "sshd why disk", "user error", "why why"]


def make_pairs(count: int) -> list[dict]:
    """Rows whose chosen answers say other words than the rejected ones."""
    random_ = random.Random(0)

    def words(of: list[str]) -> str:
        return " ".join(random_.choices(of, k=random_.randint(1, 9)))

    return [
        {
            "prompt": f"{random_.choice(PROMPTS)} {number}",
            "chosen": words(["because", "disk", "error"]),
            "rejected": words(["user", "Failed", "why"]),
        }
        for number in range(count)
    ]


def prepare_pairs(folder: Path, tokenizer: Path, rows: list[dict], monkeypatch, *flags: str) -> Path:
    """The prepared folder of rows, in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.json").write_text(json.dumps(rows))
    monkeypatch.setattr(prepare, "Pool", Inline)
    output = folder / "prepared"
    fixed = ["--format", "dpo", "--input", str(folder / "pairs.json"), "--tokenizer", str(tokenizer)]
    prepare.main([*fixed, "--output", str(output), "--seq_len", "96", *flags])
    return output
