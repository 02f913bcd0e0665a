"""The whole way from raw text to scores with every path on a server of S3, and the processes killed on the way."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.support.elsewhere import s3_server, system
from tests.support.evaluation import ROWS, write_chat_model
from tests.support.program import Program

KILLS = int(os.environ.get("LOGTRAIN_KILLS", "1"))  # of each of the four commands
LEAVES = {"prepare": "data", "cpt": "runs", "export": "export", "evaluate": "scores"}


def stages(base: str) -> dict[str, list[str]]:
    """The commands, with paths below `base`."""
    return {
        "prepare": [
            *("--input", "s3://bucket/in.jsonl", "--tokenizer", "s3://bucket/model"),
            *("--output", f"{base}/data", "--seq_len", "64", "--workers", "1"),
        ],
        "cpt": [
            *("--name", "run", "--model", "s3://bucket/model", "--data", f"{base}/data", "--runs", f"{base}/runs"),
            *("--loader.seq_len", "64", "--loader.rows_per_step", "4", "--trainer.save_every", "5"),
            *("--trainer.max_steps", "30", "--trainer.log_every", "1", "--resume", "auto", "--optim.lr", "1e-3"),
        ],
        "export": ["--run", f"{base}/runs/run", "--output", f"{base}/export"],
        "evaluate": [
            *("--models", f"trained={base}/export", "--data", "s3://bucket/questions.json", "--format", "alpaca"),
            *("--run", f"{base}/scores", "--max_new_tokens", "24", "--resume", "auto"),
        ],
    }


def killed_in(command: str, flags: list[str], output: Path, seconds: float) -> bool:
    """Run a command, and kill it after so long; -> whether it was still running."""
    program = Program(flags, output, entry=f"logtrain.{command}", environment=dict(os.environ))
    end = time.monotonic() + seconds
    program.until_or_end(lambda: time.monotonic() > end)
    program.send(signal.SIGKILL)
    return program.wait() == [-signal.SIGKILL]


def complete(command: str, flags: list[str], output: Path) -> float:
    """Run a command to its end; -> the seconds that it takes."""
    began = time.monotonic()
    status = Program(flags, output, entry=f"logtrain.{command}", environment=dict(os.environ)).wait(300)
    assert status == [0] or "exists already" in output.read_text(), output.read_text()
    return time.monotonic() - began


def results(base: str) -> dict[str, bytes]:
    """What the commands leave, but for times and for where it lies."""
    base = base.removeprefix("s3://")
    found = {path.removeprefix(base): system().cat_file(path) for path in system().find(base)}
    kept = ("export/model.safetensors", "export/config.json", "samples.jsonl", ".npy")
    return {name: content for name, content in found.items() if name.endswith(kept)}


@pytest.mark.slow(60)
def test_with_every_path_elsewhere_and_killed_at_random_moments_the_results_are_equal(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGTRAIN_CACHE", str(tmp_path / "cache"))
    model = write_chat_model(tmp_path / "model", 0.5)
    texts = [{"text": f"error {i} at 10.0.0.{i % 7}: disk {i * 7 % 13} is full, or is it"} for i in range(2000)]
    chance, told, moved = random.Random(16), [], 0
    with s3_server():
        system().put(str(model), "bucket/model", recursive=True)
        system().pipe({"bucket/in.jsonl": "\n".join(map(json.dumps, texts)).encode()})
        system().pipe({"bucket/questions.json": json.dumps(ROWS).encode()})
        undisturbed = {name: complete(name, flags, tmp_path / "out") for name, flags in stages("s3://bucket/a").items()}
        for command, flags in stages("s3://bucket/b").items():
            kills = 0
            while kills < KILLS:
                seconds = chance.random() * undisturbed[command]
                hit = killed_in(command, flags, tmp_path / "out", seconds)
                kills += hit
                told.append(f"{command} {seconds:.1f}{'' if hit else ' (ended)'}")
                if not hit:  # it was done: begin anew
                    assert "Traceback" not in (said := (tmp_path / "out").read_text()), said
                    system().rm(f"bucket/b/{LEAVES[command]}", recursive=True)
                elif chance.random() < 0.5:  # go on on another machine
                    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
                    moved += 1
            complete(command, flags, tmp_path / "out")
        expected, found = results("s3://bucket/a"), results("s3://bucket/b")
    print(f"undisturbed: {undisturbed}; killed after: {', '.join(told)}; moved {moved} times")
    assert found.keys() == expected.keys()
    assert {"/runs/run/export/model.safetensors", "/export/model.safetensors", "/scores/samples.jsonl"} < found.keys()
    assert [name for name in found if found[name] != expected[name]] == []
