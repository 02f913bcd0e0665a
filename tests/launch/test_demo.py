"""launch/demo.sh as a newcomer runs it, with fewer rows: what it makes, what it says, and that it destroys nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import LAUNCH

DEMO = LAUNCH / "demo.sh"
# On a slow machine how far it is, and what takes longer than 5 s; or the model says too much.
TOLD = re.compile(
    r"(prepare percent=|evaluate model=|cut at max_new_tokens).*"
    r"|((evaluate: )?[^:]+|waiting for \d+ ranks at \S+): \d+ s"
)
LOSSES = r"held-out loss: ([\d.]+) before training, ([\d.]+) after"


def demo(*flags: object, **kwargs) -> subprocess.CompletedProcess:
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    return subprocess.run(["bash", DEMO, *map(str, flags)], capture_output=True, text=True, env=environment, **kwargs)


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[str, Path]:
    """What the demo printed, and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    result = demo("--output", folder, "--rows", 800, "--loader.rows_per_step", 2, "--loader.rows_per_batch", 1)
    assert result.returncode == 0, result.stderr
    assert all(map(TOLD.fullmatch, result.stderr.splitlines())), result.stderr
    return result.stdout, folder


@pytest.mark.slow(100)
def test_it_says_where_it_is_and_what_came_out(shown):
    text, folder = shown
    assert re.findall(r"^== (\d)/9 ", text, re.M) == list("123456789")
    first, last = map(float, re.search(LOSSES, text).groups())
    records = [json.loads(line) for line in (folder / "cpt" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["valid_loss"] for record in records if "set" in record]
    assert (first, last) == (pytest.approx(losses[0], abs=1e-3), pytest.approx(losses[-1], abs=1e-3))
    assert last < first / 2
    assert re.search(r"The exported model goes on:\n +\S", text)
    for line in ("cpt_sft/export", "cpt_sft", "prepared"):
        assert f"{folder}/{line} (" in text
        assert (folder / line).is_dir()
    question, answer = re.search(r"Ask it\n(.+\?)\n(.*?)\n== 9/9", text, re.S).groups()
    assert "Failed password" in question
    assert answer.strip()


@pytest.mark.slow
def test_the_comparison_is_of_three_models_and_says_that_pretraining_helped(shown):
    text, folder = shown
    assert f"{folder}/evaluation/compare.html" in text
    assert (folder / "evaluation" / "compare.png").stat().st_size > 10_000
    scores = json.loads((folder / "evaluation" / "scores.json").read_text())
    fuzzy = {name: model["metrics"]["fuzzy"]["mean"] for name, model in scores["models"].items()}
    assert list(fuzzy) == ["base", "sft", "cpt_sft"]
    assert fuzzy["cpt_sft"] > fuzzy["base"]
    assert scores["data"]["questions"] == 9


@pytest.mark.slow
def test_transformers_and_the_fine_tuned_export_give_the_same_answers_and_stop_where_they_end(shown):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, folder = shown
    export = folder / "cpt_sft" / "export"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(export), AutoTokenizer.from_pretrained(export)
    questions = json.loads((folder / "questions.json").read_text())
    samples = map(json.loads, (folder / "evaluation" / "samples.jsonl").read_text().splitlines())
    ours = [sample["output"] for sample in samples if sample["model"] == "cpt_sft"]
    for row, answer in zip(questions, ours, strict=True):
        chat = [{"role": "user", "content": row["conversations"][0]["value"]}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**ids, max_new_tokens=192, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(out, skip_special_tokens=True) == answer


@pytest.mark.slow
def test_transformers_gives_the_exported_model_the_loss_that_was_shown(shown):
    """Held-out documents one by one, with no packing and no code of ours."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, folder = shown
    model = AutoModelForCausalLM.from_pretrained(folder / "cpt" / "export", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "cpt" / "export")
    end = tokenizer.convert_tokens_to_ids("<|end_of_text|>")
    rows = json.loads((folder / "nlplog.json").read_text())
    held_out = valid_rows(folder / "prepared")
    assert len(held_out) > 10
    summed, targets = 0.0, 0
    with torch.no_grad():
        for row in held_out:
            text = f"Human: {rows[row]['instruction']}\nAssistant: {rows[row]['output']}\n"
            ids = torch.tensor([[*tokenizer(text)["input_ids"], end]])
            summed += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            targets += ids.shape[1] - 1
    records = [json.loads(line) for line in (folder / "cpt" / "metrics.jsonl").read_text().splitlines()]
    assert targets == records[-1]["valid_targets"]
    assert summed / targets == pytest.approx(records[-1]["valid_loss"], rel=1e-5)


def valid_rows(prepared: Path) -> list[int]:
    import numpy as np

    shards = json.loads((prepared / "manifest.json").read_text())["splits"]["valid"]["shards"]
    return [int(row) for shard in shards for row in np.load(prepared / shard["documents"])["row"]]


@pytest.mark.slow(50)
def test_your_own_file_and_model(shown, tmp_path):
    """--input and --model: here the demo's rows as JSON lines, and the model that the demo has exported."""
    _, folder = shown
    rows = json.loads((folder / "nlplog.json").read_text())
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:200]))
    flags = ["--input", "mine.jsonl", "--model", folder / "cpt" / "export", "--output", tmp_path / "own"]
    result = demo(*flags, "--seq_len", 256, "--trainer.max_steps", 3, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert all(map(TOLD.fullmatch, result.stderr.splitlines())), result.stderr
    first, last = map(float, re.search(LOSSES, result.stdout).groups())
    assert last < first < 4, "it starts from what the model has learned"
    assert (tmp_path / "own" / "cpt" / "export" / "config.json").exists()


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--input", "x.json"], "--input FILE and --model DIR go together"),
        (["--input", "x.json", "--model", "."], "--input x.json: no such file"),
        (["--rows"], "--rows needs a value"),
        # After the installation, which a test of a fresh checkout would wait for.
        pytest.param(["--output", "."], "--output . must be a new folder, in one that exists", marks=pytest.mark.slow),
    ],
)
def test_mistakes_are_one_line(tmp_path, flags, error):
    (tmp_path / "precious").write_text("mine")
    result = demo(*flags, cwd=tmp_path)
    assert (result.returncode, result.stderr.strip().splitlines()[-1]) == (2, f"demo.sh: {error}")
    assert (tmp_path / "precious").read_text() == "mine"
