"""Folders that prepare makes of small inputs, in this process or in one of its own."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from logtrain.data.encode import encode
from logtrain.data.pool import Pool
from logtrain.data.shards import Split
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import writing

BOS, END = 256, 257


class Inline(Pool):
    """Tokenises in this process: the pool has tests of its own, and starting it takes a second."""

    def __enter__(self):
        return self

    def ask(self, question):
        return question(Tokenizer.load(self._tokenizer))

    def encode(self, chunks, encoder, where=str, num_chars=len):
        tokenizer = Tokenizer.load(self._tokenizer)
        for tag, items in chunks:
            yield tag, encode(encoder, items, tokenizer)


def write_bytes_tokenizer(folder: Path) -> Path:
    """One token a byte, <|begin_of_text|> = 256, <|end_of_text|> = 257."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    tokenizer.post_processor = writing(tokenizer, "<|begin_of_text|>")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|begin_of_text|>"}')
    return folder


def make_rows(num_rows: int, seed: int = 0) -> list[dict]:
    """NLPlog-shaped rows, a fifth of them seen before; the others are no twins, for each has a word of its own."""
    random_ = random.Random(seed)
    rows = []
    for i in range(num_rows):
        if rows and random_.random() < 0.2:
            rows.append(random_.choice(rows) | {"domain": random_.choice(["HDFS", "BGL", ""])})
            continue
        name = "".join("abcdefghij"[int(digit)] for digit in str(i))
        log = f"node-{name} é error {random_.random()}" + " more" * random_.randrange(12)
        row = {
            "instruction": f"Explain '{log}'.",
            "log": log,
            "output": f"It is {name}.",
            "domain": random_.choice(["HDFS", "BGL"]),
        }
        rows.append(row)
    return rows


def text_of(row: dict) -> str:
    return f"Human: {row['instruction']}\nAssistant: {row['output']}\n"


def arguments(tokenizer: Path, output: Path, *inputs: Path, **flags) -> list[str]:
    flags = {"seq_len": 100, "valid_fraction": 0.2, "workers": 1} | flags
    argv = ["--input", *map(str, inputs), "--tokenizer", str(tokenizer), "--output", str(output)]
    for name, value in flags.items():
        argv += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return argv


def dump(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def read_documents(folder: Path) -> dict[str, list[tuple[list[int], dict]]]:
    """By split, each document's tokens, and what it came from."""
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {}
    for name, of_split in manifest["splits"].items():
        split = Split.open(folder, name)
        records = np.concatenate([np.load(folder / shard["documents"]) for shard in of_split["shards"]])
        found[name] = [
            (split.read(i, 0, int(split.lengths[i])).tolist(), dict(zip(records.dtype.names, record, strict=True)))
            for i, record in enumerate(records.tolist())
        ]
    return found


def start(argv: list[str], **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "logtrain.prepare", *argv]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def workers_of(process: subprocess.Popen, at_least: int = 1) -> list[int]:
    """The tokenising processes, once there are so many."""
    for _ in range(6000):
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
        except FileNotFoundError:
            continue
        found = [child for child, command in commands.items() if b"logtrain.data.pool" in command]
        if len(found) >= at_least:
            return found
        time.sleep(0.005)
    raise AssertionError("no workers came up")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition) -> bool:
    for _ in range(6000):
        if condition():
            return True
        time.sleep(0.005)
    return False
