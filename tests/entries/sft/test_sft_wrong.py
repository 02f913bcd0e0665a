"""What is wrong with a fine-tuning run is one line that says what, and nothing is written."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from logtrain import sft
from logtrain.core import entry
from logtrain.training import publish
from tests.support.finetuning import (
    DROPOUT,
    SEQ_LEN,
    as_chats,
    checkpoints,
)
from tests.support.synthetic import write_data

pytestmark = pytest.mark.slow


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[[list[str]], tuple[int, str]]:
    """`python -m logtrain.sft FLAGS` in this process; -> exit status and stderr."""

    def command(flags: list[str]) -> tuple[int, str]:
        gc.collect()  # an error before holds the lock of the run as long as it is there itself
        monkeypatch.setattr(sys, "argv", ["logtrain.sft", *flags])
        try:
            with pytest.raises(SystemExit) as ended:
                entry.run(sft.main)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        return ended.value.code, capsys.readouterr().err

    return command


@pytest.fixture(scope="module")
def without_valid(case) -> Path:
    return as_chats(write_data(case.folder / "without", case.model, seq_len=SEQ_LEN, lengths={"train": [40] * 9}))


RULE = "expected rank >= 0, alpha > 0, 0 <= dropout < 1"
MISTAKES = {  # flags, what is said
    "documents": (
        ["--data", "{documents}"],
        "{documents}: prepared as documents, which `logtrain cpt` trains on; for `logtrain sft` prepare conversations, "
        "with --format sharegpt, messages or alpaca",
    ),
    "negative rank": (["--lora.rank", "-1"], f"lora: rank -1, alpha 8.0, dropout {DROPOUT}: {RULE}"),
    "no alpha": (["--lora.alpha", "0"], f"lora: rank 3, alpha 0.0, dropout {DROPOUT}: {RULE}"),
    "alpha not a number": (["--lora.alpha", "nan"], "lora.alpha = nan: expected a number"),
    "everything dropped": (["--lora.dropout", "1"], RULE),
    "unknown layer": (
        ["--lora.targets", "q_proj", "lm_head"],
        '--lora.targets lm_head: expected one of "q_proj", ',
    ),
    "no layers": (["--lora.targets"], "lora.targets = (): expected at least one layer, each once"),
    "a layer twice": (["--lora.targets", "q_proj", "q_proj"], "expected at least one layer, each once"),
    "best of nothing": (
        ["--data", "{without}", "--trainer.keep_best"],
        "trainer.keep_best goes by the validation loss, but {without} has no validation split",
    ),
    "patience with nothing": (
        ["--data", "{without}", "--trainer.patience", "2"],
        "trainer.patience goes by the validation loss, but {without} has no validation split",
    ),
    "negative documents": (
        ["--loader.documents_per_step", "-1"],
        "loader.documents_per_step = -1 must not be negative",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(case, without_valid, command, tmp_path, mistake: str):
    flags, message = MISTAKES[mistake]
    places = {"without": without_valid, "documents": case.documents}
    flags = [flag.format(**places) for flag in flags]
    status, said = command([*case.flags, "--runs", str(tmp_path), *flags])
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith("error: ")
    assert message.format(**places) in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora.rank", "4"], "was started with lora.rank = 3, now it is 4"),
        (["--lora.rank", "0"], "was started with lora.rank = 3, now it is 0"),
        (["--lora.dropout", "0"], f"was started with lora.dropout = {DROPOUT}, now it is 0.0"),
        (["--lora.targets", "q_proj"], "now it is ('q_proj',)"),
        (["--trainer.keep_best"], "was started with trainer.keep_best = False, now it is True"),
    ],
)
def test_a_resumed_run_keeps_its_adapters(case, whole, command, flags: list[str], message: str):
    before = {path: path.stat().st_mtime_ns for path in whole[1].rglob("*") if path.name != ".lock"}
    runs = ["--runs", str(whole[1].parent), "--parallel.shard_ranks", "1", "--resume", "auto"]
    status, said = command([*case.flags, *runs, *flags])
    assert (status, said.count("\n")) == (2, 1)
    assert message in said
    assert before == {path: path.stat().st_mtime_ns for path in whole[1].rglob("*") if path.name != ".lock"}


@pytest.mark.parametrize("best", [[], ["--trainer.keep_best"]], ids=["last", "best"])
def test_a_loss_that_is_no_number_in_validation_ends_the_run(case, command, tmp_path, best: list[str]):
    flags = [*case.flags, "--runs", str(tmp_path), "--optim.lr", "1e15", "--trainer.valid_every", "1"]
    status, said = command([*flags, *best])
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith("error: step 1: loss nan on valid: training has diverged; ")
    assert checkpoints(tmp_path / "run") == []


def test_an_update_that_merged_weights_cannot_hold_is_said_to_be_in_the_adapter(case, tmp_path, command, monkeypatch):
    """The adapter is written, for it is equal to the model in memory, and the run resumes without merging it."""
    monkeypatch.setattr(publish, "TOLERANCE", 0.0)
    flags = [*case.flags, "--runs", str(tmp_path), "--export_dtype", "bfloat16"]
    status, said = command(flags)
    assert status == 2 and "use the run's adapter/ as it is, and resume with export_merged = false" in said
    adapter = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    assert adapter.exists() and not (tmp_path / "run" / "export").exists()
    assert sft.main([*flags, "--no_export_merged", "--resume", "auto"]) == 0
