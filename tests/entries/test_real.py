"""Continual pretraining of real models on real log text, from the raw file to a smaller loss on what was held out."""

import json
from pathlib import Path

import pytest

from logtrain import prepare
from tests.support.training import records, train

pytestmark = pytest.mark.slow


def held_out_losses(model: Path, shared: Path, folder: Path, flags: list[str]) -> list[float]:
    data, text = folder / "data", shared / "loglm" / "loglm_instruction_2632.json"
    options = ["--input", str(text), "--tokenizer", str(model), "--output", str(data), "--seq_len", "512"]
    prepare.main([*options, "--workers", "1"])
    flags = ["--name", "run", "--runs", str(folder), "--model", str(model), "--data", str(data), *flags]
    assert train([*flags, "--loader.seq_len", "512", "--trainer.max_steps", "20"]) == 0
    return [record["valid_loss"] for record in records(folder / "run", "valid_loss")]


def test_stories260k_learns_logs(shared, tmp_path):
    before, after = held_out_losses(
        shared / "data" / "stories260k",
        shared / "data",
        tmp_path,
        ["--optim.lr", "2e-3", "--loader.rows_per_step", "2"],
    )
    assert after < 0.7 * before, (before, after)


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '\\nQuestion: ' if message['role'] == 'user' else '\\nAnswer: ' }}"
    "{{ message['content'] }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '\\nAnswer: ' }}{% endif %}"
)


def test_stories260k_comes_to_prefer_answers_about_logs(shared, tmp_path):
    """Those of LogLM to those that others gave to general questions: the margin of pairs that were held out rises."""
    model, data = shared / "data" / "stories260k", shared / "data"
    of_logs = json.loads((data / "loglm" / "loglm_instruction_2632.json").read_text())
    of_others = json.loads((data / "general" / "alpaca_1k.json").read_text())
    rejected = [row["output"] for row in of_others if 40 < len(row["output"]) < 200]
    prompts = [(f"{row['instruction']}\n{row['input']}", row["output"]) for row in of_logs]
    # The model knows 512 positions, into which both answers and the prompt twice must fit.
    short = [(prompt, chosen) for prompt, chosen in prompts if len(prompt) < 180 and len(chosen) < 200]
    rows = [{"prompt": p, "chosen": c, "rejected": r} for (p, c), r in zip(short, rejected, strict=False)]
    assert len(rows) >= 100
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    options = ["--format", "dpo", "--input", str(tmp_path / "pairs.json"), "--tokenizer", str(model), "--workers", "1"]
    options += ["--template", str(tmp_path / "template.jinja"), "--too_long", "drop", "--valid_fraction", "0.3"]
    prepare.main([*options, "--output", str(tmp_path / "data"), "--seq_len", "512"])
    flags = ["--name", "run", "--runs", str(tmp_path), "--model", str(model), "--data", str(tmp_path / "data")]
    flags += ["--loader.seq_len", "512", "--loader.rows_per_step", "4", "--lora.rank", "0", "--optim.lr", "5e-4"]
    flags += ["--trainer.valid_every", "0", "--trainer.epochs", "9", "--trainer.max_steps", "20"]
    assert train(flags, "logtrain.dpo") == 0
    before, after = records(tmp_path / "run", "valid_loss")
    assert abs(before["margin"]) < 1e-4 and after["valid_targets"] >= 20
    assert after["margin"] > 0.1 and after["accuracy"] > 0.7, after


def test_smollm2_learns_logs(smollm2, shared, tmp_path):
    before, after = held_out_losses(
        smollm2, shared / "data", tmp_path, ["--optim.lr", "5e-5", "--loader.rows_per_step", "1"]
    )
    assert after < 0.95 * before, (before, after)
