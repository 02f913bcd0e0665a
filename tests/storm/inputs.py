"""What a storm begins with: a small model, rows in every kind of file, logs, a suite, and a review."""

import csv
import gzip
import io
import json
import random
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet

from logtrain.serving.decisions import Decision, Decisions
from logtrain.serving.reviewed_file import ReviewedFile
from tests.support.evaluation import ROWS, write_chat_model
from tests.support.pairs import make_pairs
from tests.support.preparing import dump, make_rows
from tests.support.synthesising import write_log

SUITE = """
title = "Small"
[[set]]
name = "own"
file = "test.json"
format = "alpaca"
max_new_tokens = 4
figures = ["fuzzy"]
"""


def write_inputs(folder: Path) -> None:
    """All of it."""
    source = random.Random(5)
    write_chat_model(folder / "model", 0.3)
    chats = [
        {"instruction": f"why error {i}?", "input": "disk " * source.randrange(9), "output": f"because disk {i}."}
        for i in range(40)
    ]
    dump(folder / "text.json", make_rows(60))
    dump(folder / "chats.json", chats)
    dump(folder / "pairs.json", make_pairs(40))
    dump(folder / "test.json", ROWS[:5])
    (folder / "suite.toml").write_text(SUITE)
    write_log(folder / "a.log", 90)
    write_log(folder / "b.log", 90, seed=1)
    write_tables(folder)
    write_review(folder / "reviewed.json", chats[:12])


def write_tables(folder: Path) -> None:
    """Texts as a table of Parquet, as packed CSV, and as a log in an archive."""
    texts = [row["instruction"] for row in make_rows(90)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[:30]}), folder / "rows.parquet")
    told = io.StringIO()
    csv.writer(told).writerows([["text"], *([text] for text in texts[30:50])])
    (folder / "rows.csv.gz").write_bytes(gzip.compress(told.getvalue().encode(), mtime=0))
    with zipfile.ZipFile(folder / "logs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("app.log"), "\n".join(texts[50:]) + "\n")


def write_review(file: Path, rows: list[dict[str, str]]) -> None:
    """Rows, and what two people have decided about them."""
    file.write_text(json.dumps(rows))
    reviewed = ReviewedFile(file)
    decisions = Decisions(file, reviewed.hashes)
    for row, sha256 in enumerate(reviewed.hashes):
        verdict = ("accept", "edit", "reject")[row % 3]
        edits = {"output": f"because of disk {row}"} if verdict == "edit" else {}
        decisions.add(Decision(row, sha256, "ann", verdict, edits))
        decisions.add(Decision(row, sha256, "bob", "accept"))
