"""What a user can get wrong about a training run: one clear line, exit status 2, and nothing left behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from logtrain import cpt
from logtrain.core import entry
from tests.support import without_waits
from tests.support.finetuning import as_chats
from tests.support.program import last_step
from tests.support.synthetic import change_manifest, write_data, write_model, write_tokenizer

SETTINGS = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 130, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with a model and data prepared for it."""
    folder = tmp_path_factory.mktemp("errors")
    model = write_model(folder / "model", max_position_embeddings=48, **SETTINGS)
    lengths = np.random.default_rng(3).integers(2, 32, 60).tolist()
    write_data(folder / "data", model, seq_len=32, lengths={"train": lengths, "valid": lengths[:6]})
    return folder


@pytest.fixture
def case(inputs: Path, tmp_path: Path) -> SimpleNamespace:
    """A copy of the inputs, to be damaged, and the flags of a run that would succeed."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    facts = json.loads((tmp_path / "data" / "manifest.json").read_text())
    change_manifest(tmp_path / "data", tokenizer=facts["tokenizer"] | {"path": str(tmp_path / "model")})
    flags = [
        "--name",
        "run",
        "--model",
        f"{tmp_path}/model",
        "--data",
        f"{tmp_path}/data",
        "--runs",
        f"{tmp_path}/runs",
    ]
    flags += ["--loader.seq_len", "32", "--loader.rows_per_step", "4", "--trainer.max_steps", "6", "--optim.lr", "1e-3"]
    return SimpleNamespace(
        folder=tmp_path, model=tmp_path / "model", data=tmp_path / "data", run=tmp_path / "runs" / "run", flags=flags
    )


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[[list[str]], tuple[int, str]]:
    """`python -m logtrain.cpt FLAGS` in this process; -> exit status and stderr."""

    def command(flags: list[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["logtrain.cpt", *flags])
        try:
            with pytest.raises(SystemExit) as ended:
                entry.run(cpt.main)
        finally:
            if torch.distributed.is_initialized():  # an error leaves it to the end of the process
                torch.distributed.destroy_process_group()
        return ended.value.code, without_waits(capsys.readouterr().err)

    return command


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path: Path, by: int = 8) -> None:
    os.truncate(path, path.stat().st_size - by)


TOKENS, DOCUMENTS, WEIGHTS = "train-00000.tokens.npy", "train-00000.documents.npy", "model.safetensors"
Q, GATE = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.gate_proj.weight"
Case = SimpleNamespace
MISTAKES: dict[str, tuple[Callable[[Case], object], list[str], str]] = {  # what is done, the flags, what is said
    "no model folder": (lambda c: shutil.rmtree(c.model), [], "{c.model}/config.json: no such file"),
    "no weights": (lambda c: (c.model / WEIGHTS).unlink(), [], f"{{c.model}}: neither {WEIGHTS} nor"),
    "not a Llama": (
        lambda c: edit_json(c.model / "config.json", model_type="mistral"),
        [],
        '{c.model}/config.json: model_type = "mistral" is not supported',
    ),
    "weights cut": (lambda c: cut(c.model / WEIGHTS), [], f"{{c.model}}/{WEIGHTS}: damaged or cut short"),
    "tensor missing": (
        lambda c: edit_weights(c.model / WEIGHTS, lambda tensors: tensors.pop(Q)),
        [],
        f"{{c.model}}: {WEIGHTS} has no tensor {Q}",
    ),
    "tensor of a wrong shape": (
        lambda c: edit_weights(c.model / WEIGHTS, lambda tensors: tensors.update({GATE: torch.zeros(49, 32)})),
        [],
        f"{{c.model}}/{WEIGHTS}: {GATE} has shape [49, 32], config.json asks for [48, 32]",
    ),
    "tensor too many": (
        lambda c: edit_weights(c.model / WEIGHTS, lambda tensors: tensors.update(extra=torch.zeros(1))),
        [],
        f"{{c.model}}/{WEIGHTS}: unexpected tensor extra",
    ),
    "no data folder": (lambda c: shutil.rmtree(c.data), [], "{c.data}: no such prepared folder"),
    "data not complete": (
        lambda c: (c.data / "manifest.json").unlink(),
        [],
        "{c.data}: not a prepared folder (no manifest.json)",
    ),
    "shard damaged": (lambda c: flip(c.data / TOKENS), [], f"{{c.data}}/{TOKENS}: damaged (its checksum differs"),
    "documents damaged": (lambda c: flip(c.data / DOCUMENTS), [], f"{{c.data}}/{DOCUMENTS}: damaged (its checksum"),
    "shard cut": (lambda c: cut(c.data / TOKENS), [], f"{{c.data}}/{TOKENS}: cut short or damaged"),
    "shard missing": (lambda c: (c.data / TOKENS).unlink(), [], f"{{c.data}}/{TOKENS}: "),
    "tokenizer too large": (
        lambda c: edit_json(c.model / "config.json", vocab_size=120),
        [],
        "{c.model}: its tokenizer has 130 ids, its model only 120 rows; they do not belong together: take the model's",
    ),
    "chats": (
        lambda c: as_chats(c.data),
        [],
        "{c.data}: prepared as chats, which `logtrain sft` trains on (--lora.rank 0 for all parameters); for `logtrain "
        "cpt` prepare text, with --format auto",
    ),
    "tokenizer changed": (
        lambda c: write_tokenizer(c.model, 129),
        [],
        "{c.model}: the tokenizer has changed since {c.data} was prepared; prepare it again",
    ),
    "another tokenizer": (
        lambda c: write_tokenizer(shutil.copytree(c.model, c.folder / "other"), 129),
        ["--model", "{c.folder}/other"],
        "{c.data}: was prepared with another tokenizer than that of {c.folder}/other; prepare it with --tokenizer",
    ),
    "rows longer than the model": (
        lambda c: None,
        ["--loader.seq_len", "64"],
        "loader.seq_len = 64: the model {c.model} knows 48 positions",
    ),
    "rows of another length": (
        lambda c: None,
        ["--loader.seq_len", "48"],
        "loader.seq_len = 48, but {c.data} was prepared for 32",
    ),
    "rows that do not divide": (
        lambda c: None,
        ["--loader.rows_per_batch", "3"],
        "loader.rows_per_step = 4 is not a multiple of 3 (1 ranks x loader.rows_per_batch = 3); set rows_per_step to 6",
    ),
    "shards that do not divide": (
        lambda c: None,
        ["--parallel.shard_ranks", "3"],
        "parallel.shard_ranks = 3 does not divide the 1 ranks",
    ),
    "unknown flag": (lambda c: None, ["--optim.learning_rate", "1"], "--optim.learning_rate: unknown flag"),
    "misspelt flag": (lambda c: None, ["--optim.warmup_ration", "1"], "did you mean --optim.warmup_ratio?"),
    "misspelt key": (
        lambda c: (c.folder / "my.toml").write_text("[trainer]\nepoch = 2\n"),
        ["{c.folder}/my.toml"],
        "{c.folder}/my.toml:2: trainer.epoch: unknown key; did you mean trainer.epochs?",
    ),
    "no such file": (lambda c: None, ["{c.folder}/mine.toml"], "{c.folder}/mine.toml: No such file or directory"),
    "a value out of range": (lambda c: None, ["--trainer.epochs", "0"], "trainer.epochs = 0 must be at least 1"),
    "a validation set without a name": (lambda c: None, ["--valid", "{c.data}"], "expected NAME=FOLDER"),
    "a validation set without documents": (
        lambda c: write_data(c.folder / "bare", c.model, seq_len=32, lengths={"train": [9]}),
        ["--valid", "bare={c.folder}/bare"],
        "{c.folder}/bare: no documents in split 'valid'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(case, command, mistake: str):
    do, flags, message = MISTAKES[mistake]
    do(case)
    status, said = command([*case.flags, *(flag.format(c=case) for flag in flags)])
    assert status == 2
    assert said.startswith("error: ")
    assert message.format(c=case) in said
    assert said.count("\n") == 1
    assert said.endswith("\n")
    assert not case.run.exists()  # put right, the same command runs


def test_without_a_mistake_it_runs(case, command):
    assert command(case.flags) == (0, "")


# ---- training that diverges


@pytest.mark.parametrize(
    ("flags", "step"),
    [
        (["--trainer.log_every", "1"], 4),  # the third in a row
        (["--trainer.log_every", "1", "--trainer.max_skipped", "1"], 2),
        (["--trainer.stop_after", "5"], 5),  # a stop looks before it saves
        (["--trainer.stop_after", "3"], 3),  # though two in a row might pass
    ],
)
def test_diverged_training_stops_and_is_not_saved(case, command, flags: list[str], step: int):
    """With a learning rate of 1e30 the first update leaves weights with which no later step is finite."""
    status, said = command([*case.flags, "--optim.lr", "1e30", "--trainer.save_every", "1000", *flags])
    assert status == 2
    assert re.match(rf"error: step {step}: .*: training has diverged; ", said)
    assert said.count("\n") == 1
    assert list((case.run / "checkpoints").iterdir()) == []


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_checkpoints_before_the_divergence_stay_and_are_finite(case, command):
    status, said = command([*case.flags, "--optim.lr", "1e30", "--trainer.save_every", "1", "--trainer.keep", "0"])
    assert (status, said.split(":")[1]) == (2, " step 4")
    (path,) = (case.run / "checkpoints").iterdir()
    assert path.name == "step-000001"
    tensors = load_file(path / "rank-00000.safetensors")
    assert len(tensors) > 20
    assert all(tensor.isfinite().all() for tensor in tensors.values())


# ---- the real command


@pytest.mark.slow
def test_two_ranks_under_torchrun_say_one_line(case):
    """Also where only rank 0 knows: the folder of the run is taken, and the other rank waits for it in a collective."""
    case.run.mkdir(parents=True)
    (case.run / "thesis.tex").write_text("years of work")
    assert torchrun(case.flags, case.folder / "output").wait(60) != 0
    lines = (case.folder / "output").read_text().splitlines()
    assert [line for line in lines if line.startswith(("error: ", "rank ", "[rank"))] == [  # beside torchrun's own
        f"error: {case.run}: exists and is not a run (no config.toml); choose another --name"
    ]


@pytest.mark.slow
def test_a_killed_rank_under_torchrun_ends_the_run(case):
    flags = [*case.flags, "--trainer.max_steps", "0", "--trainer.epochs", "1000", "--trainer.log_every", "1"]
    process = torchrun(flags, case.folder / "output")
    try:
        while last_step(case.run) < 3:
            assert process.poll() is None, (case.folder / "output").read_text()
            time.sleep(0.05)
        os.kill(child_of_rank(process.pid, 1), signal.SIGKILL)
        assert process.wait(45) != 0
    finally:
        process.kill()


def torchrun(flags: list[str], output: Path) -> subprocess.Popen:
    """Two ranks; the module as users start it, with all it prints in `output`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with open(output, "w") as file:
        return subprocess.Popen([*command, "-m", "logtrain.cpt", *flags], stdout=file, stderr=subprocess.STDOUT)


def child_of_rank(parent: int, rank: int) -> int:
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"process {parent} has no child of rank {rank}")
