"""Continual pretraining of real models on real log text, from the raw file to a smaller loss on what was held out."""

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


def test_smollm2_learns_logs(smollm2, shared, tmp_path):
    before, after = held_out_losses(
        smollm2, shared / "data", tmp_path, ["--optim.lr", "5e-5", "--loader.rows_per_step", "1"]
    )
    assert after < 0.95 * before, (before, after)
