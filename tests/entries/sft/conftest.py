"""What tests of fine-tuning share: a case, its run without interruption, a run that overfits."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.finetuning import DROPOUT, LR, ROWS_PER_STEP, SEQ_LEN, SFT, SHAPE, STEPS, as_chats, pefts_run
from tests.support.ranks import Ranks
from tests.support.synthetic import write_data, write_model
from tests.support.training import train


@pytest.fixture(scope="session")
def case(tmp_path_factory) -> SimpleNamespace:
    """A model, its data, the flags of a run of 10 steps, and the same run by PEFT."""
    folder = tmp_path_factory.mktemp("sft")
    model = write_model(folder / "model", num_key_value_heads=1, initializer_range=0.2, **SHAPE)
    lengths = np.random.default_rng(5).integers(2, 48, 113).tolist()
    splits = {"train": lengths, "valid": lengths[:20]}
    documents = write_data(folder / "documents", model, seq_len=SEQ_LEN, lengths=splits, context=0.4)
    data = as_chats(shutil.copytree(documents, folder / "data"))
    flags = ["--model", str(model), "--data", str(data), "--optim.lr", str(LR), "--loader.seq_len", str(SEQ_LEN)]
    flags += ["--lora.rank", "3", "--lora.alpha", "8", "--lora.dropout", str(DROPOUT)]
    flags += ["--loader.rows_per_step", str(ROWS_PER_STEP), "--trainer.epochs", "2", "--trainer.max_steps", str(STEPS)]
    flags += ["--trainer.log_every", "1", "--name", "run"]
    plain = pefts_run(folder, model, data)
    return SimpleNamespace(folder=folder, model=model, documents=documents, data=data, flags=flags, plain=plain)


@pytest.fixture(scope="session")
def whole(case, ranks: Ranks) -> dict[int, Path]:
    """The run without interruption: on one rank, and as two whole copies."""
    runs = {size: case.folder / f"whole-{size}" for size in (1, 2)}
    for size, folder in runs.items():
        flags = [*case.flags, "--parallel.shard_ranks", "1", "--trainer.save_every", "2", "--runs", str(folder)]
        assert ranks.run(size, train, flags, SFT) == [0] * size
    return {size: folder / "run" for size, folder in runs.items()}


@pytest.fixture(scope="session")
def overfitting(case) -> SimpleNamespace:
    """A run of 12 steps, validated after each, that learns three documents by heart and gets worse on another."""
    splits = {"train": [48] * 3, "valid": [48]}
    data = as_chats(write_data(case.folder / "few", case.model, seq_len=SEQ_LEN, lengths=splits, context=0.4))
    flags = [*case.flags, "--data", str(data), "--optim.schedule", "constant", "--optim.lr", "7e-2"]
    flags += ["--loader.rows_per_step", "3", "--trainer.epochs", "12", "--trainer.max_steps", "12"]
    flags += ["--trainer.valid_every", "1", "--trainer.save_every", "3", "--trainer.keep", "1"]
    return SimpleNamespace(data=data, flags=flags)
