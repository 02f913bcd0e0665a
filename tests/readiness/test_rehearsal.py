"""A rehearsal says in one line what would fail later, and leaves nothing but its report."""

import json
import multiprocessing.forkserver
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from logtrain import dpo
from logtrain import rehearse as entry
from logtrain.core.config import load
from logtrain.cpt import CptConfig
from logtrain.readiness import disk
from logtrain.readiness.rehearsal import rehearse
from logtrain.sft import SftConfig
from logtrain.training.run import train
from tests.storm.full_disk import is_possible
from tests.support import LAUNCH
from tests.support.faults import FAULTS, ROOT_FAULTS, SEQ_LEN, begun, chats, edit_weights
from tests.support.program import SERVER
from tests.support.synthetic import change_manifest, write_data, write_model

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "vocab_size": 130,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
}
QUICK = ("NaN in a late layer", "bad last shard", "output is a file", "other data on resume")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with a model in several files, and data in several shards."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("rehearsal")
    model = write_model(folder / "model", max_position_embeddings=64, **SHAPE)
    LlamaForCausalLM.from_pretrained(model).save_pretrained(folder / "parts", max_shard_size="80KB")
    (model / "model.safetensors").unlink()
    for file in (folder / "parts").glob("model*"):
        shutil.move(file, model)
    lengths = np.random.default_rng(3).integers(2, 32, 300).tolist()
    write_data(folder / "data", model, seq_len=SEQ_LEN, lengths={"train": lengths, "valid": lengths[:6]})
    multiprocessing.forkserver.ensure_running()  # with what tests of other files need, not a rehearsal alone
    assert SERVER
    return folder


@pytest.fixture
def case(inputs: Path, tmp_path: Path, monkeypatch) -> Iterator[SimpleNamespace]:
    """A copy of the inputs, to be damaged, and the flags of a run that would succeed."""
    monkeypatch.setattr(disk, "MOST", disk.CHUNK)
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    facts = json.loads((tmp_path / "data" / "manifest.json").read_text())
    change_manifest(tmp_path / "data", tokenizer=facts["tokenizer"] | {"path": str(tmp_path / "model")})
    runs, model, data = (tmp_path / name for name in ("runs", "model", "data"))
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--runs", str(runs), "--optim.lr", "1e-3"]
    flags += ["--loader.seq_len", str(SEQ_LEN), "--loader.rows_per_step", "4", "--trainer.max_steps", "6"]
    case = SimpleNamespace(folder=tmp_path, runs=runs, model=model, data=data, flags=flags, clean=[])
    case.monkeypatch = monkeypatch
    yield case
    for clean in case.clean:
        clean()


def rehearsed(flags: list[str], cls: type = CptConfig, work: Callable[..., int] = train) -> tuple[list[str], str]:
    """(the lines that a rehearsal says, its error)."""
    said: list[str] = []
    try:
        return (said, "") if rehearse(load(cls, flags), said.append, work) == 0 else (said, "status")
    except ValueError as error:
        return said, str(error)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else {}


def is_caught(case: SimpleNamespace, name: str) -> None:
    """A fault is said in one line, the run's folder is untouched, and nothing but a report is left."""
    fault = FAULTS[name]
    fault.do(case)
    before, flags = files_of(case.runs / "run"), [flag.format(c=case) for flag in fault.flags]
    cls = SftConfig if "template" in name else CptConfig
    said, error = rehearsed([*case.flags, *flags], cls, fault.work)
    failed = [line for line in said if line.startswith("FAILED")] or [error]
    assert len(failed) == 1 and fault.said.format(c=case) in failed[0], (said, error)
    assert "\n" not in failed[0]
    assert files_of(case.runs / "run") == before
    left = {path.name for path in case.runs.iterdir()} if case.runs.is_dir() else set()
    assert left <= {"run", "run.rehearsal.json"}


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_is_said_before_the_first_step(case, name: str):
    is_caught(case, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FAULTS) - set(QUICK)))
def test_every_fault_is_said_before_the_first_step(case, name: str):
    if name in ROOT_FAULTS and not is_possible(case.folder / "probe"):
        pytest.skip("needs to mount a tmpfs")
    is_caught(case, name)


def test_there_are_thirty_faults_and_more():
    assert len(FAULTS) >= 30


# ---- set-ups that are good


def other_data(case: SimpleNamespace, name: str) -> None:
    write_data(case.folder / name, case.model, seq_len=SEQ_LEN, lengths={"train": [20] * 60, "valid": [9, 30]}, seed=5)


def tied(case: SimpleNamespace) -> None:
    shutil.rmtree(case.model)
    write_model(case.model, max_position_embeddings=64, tie_word_embeddings=True, **SHAPE)


def with_added_layers(case: SimpleNamespace) -> None:
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        edit_weights(case, f"model.layers.3.{part}.weight", torch.zeros_like)


def in_bfloat16(case: SimpleNamespace) -> None:
    from transformers import LlamaForCausalLM

    LlamaForCausalLM.from_pretrained(case.model, dtype=torch.bfloat16).save_pretrained(case.model)


def nothing(_: SimpleNamespace) -> None:
    """The set-up is good as it is."""


LORA = ("--lora.rank", "2", "--lora.dropout", "0.1")
GOOD: dict[str, tuple[Callable[[SimpleNamespace], object], tuple[str, ...]]] = {
    "plain": (nothing, ()),
    "one file of tied weights": (tied, ()),
    "a layer that was added": (with_added_layers, ("--trainer.max_steps", "40")),
    "bfloat16, random weights": (in_bfloat16, ("--init", "random", "--export_dtype", "bfloat16")),
    "adapters alone": (nothing, (*LORA, "--no_export_merged", "--trainer.no_save_last")),
    "chats by adapters, the best": (lambda c: chats(c, "a"), ("--data", "{c.folder}/a", *LORA, "--trainer.keep_best")),
    "two sources": (
        lambda c: other_data(c, "b"),
        ("--data", "a={c.data}", "b={c.folder}/b", "--mix.a", "0.5", "--mix.b", "0.5"),
    ),
    "a named set": (lambda c: other_data(c, "b"), ("--valid", "b={c.folder}/b", "--loader.attention", "row")),
    "resumed": (begun, ("--resume", "auto", "--price", "2")),
    "documents a step": (nothing, ("--loader.documents_per_step", "16", "--recompute", "full", "--trainer.keep", "0")),
    "the longest name": (nothing, ("--name", "日" * 77)),
    "one step": (nothing, ("--trainer.max_steps", "1", "--trainer.patience", "1", "--dtype", "bfloat16")),
}


def is_taken_for_good(case: SimpleNamespace, name: str) -> list[str]:
    do, flags = GOOD[name]
    do(case)
    before = files_of(case.runs / "run")
    cls = SftConfig if "chats" in name else CptConfig
    said, error = rehearsed([*case.flags, *(flag.format(c=case) for flag in flags)], cls)
    assert error == "" and not [line for line in said if line.startswith(("FAILED", "left out"))], (said, error)
    assert files_of(case.runs / "run") == before
    run = flags[1] if "--name" in flags else "run"
    assert {path.name for path in case.runs.iterdir()} - {"run"} == {f"{run}.rehearsal.json"}
    return said


def test_a_good_set_up_passes_and_is_reported(case):
    said = "\n".join(is_taken_for_good(case, "plain"))
    report = json.loads((case.runs / "run.rehearsal.json").read_text())
    assert report["passed"] and [stage["passed"] for stage in report["stages"]] == [True] * 9
    assert report["parameters"] == 39_328 and report["disk"]["write"] > 0
    assert "2 of 4 layers" in said and "killed by SIGKILL" in said and "went on after step 2" in said
    assert "loss differs by" in said and "not predicted on a CPU" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(GOOD) - {"plain"}))
def test_no_good_set_up_is_refused(case, name: str):
    is_taken_for_good(case, name)


# ---- on two ranks


def rehearsed_on_two_ranks(case: SimpleNamespace) -> tuple[int, str, dict]:
    """(exit status, what was printed, the report) of the command."""
    environment = {**os.environ, "PET_NPROC_PER_NODE": "2", "VIRTUAL_ENV": sys.prefix}
    command = [LAUNCH / "run.sh", "cpt", *case.flags, "--rehearse"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert [path.name for path in case.runs.iterdir()] == ["run.rehearsal.json"], done.stderr
    return done.returncode, done.stdout + done.stderr, json.loads((case.runs / "run.rehearsal.json").read_text())


@pytest.mark.slow
def test_two_ranks_rehearse_together(case):
    status, said, report = rehearsed_on_two_ranks(case)
    assert status == 0 and "FAILED" not in said and "left out" not in said, said
    assert said.count("killed by SIGKILL") == said.count("went on after step 2") == 1
    assert report["passed"] and report["ranks"] == 2
    assert [stage["passed"] for stage in report["stages"]] == [True] * 10  # with that of the folder that ranks share


@pytest.mark.slow
def test_what_would_fail_on_two_ranks_is_said_once_and_ends_both(case):
    FAULTS["NaN in a late layer"].do(case)
    status, said, report = rehearsed_on_two_ranks(case)
    (failed,) = [line for line in said.splitlines() if line.startswith("FAILED")]
    assert status == 2 and FAULTS["NaN in a late layer"].said in failed, said
    assert said.count("error: rehearsal: 1 thing would fail") == 1 and "Traceback" not in said
    assert not report["passed"] and report["ranks"] == 2


# ---- the command


def test_the_command_takes_the_job_that_the_data_are_for(case, monkeypatch):
    """And a mistyped key is told before anything else."""
    taken: list[list[str]] = []
    for job in ("cpt", "sft"):
        monkeypatch.setattr(f"logtrain.{job}.main", lambda argv, job=job: taken.append([job, *argv]) or 0)
    assert entry.main(case.flags) == 0
    assert entry.main([*case.flags, "--data", str(chats(case, "a"))]) == 0
    assert entry.main([*case.flags, "--data", str(case.folder / "none")]) == 0
    assert [words[0] for words in taken] == ["cpt", "sft", "cpt"]
    assert taken[0] == ["cpt", *case.flags, "--rehearse"]
    with pytest.raises(ValueError, match=r"did you mean --optim\.lr"):
        entry.main([*case.flags, "--optim.lrr", "1"])


def test_pairs_of_answers_are_not_rehearsed_but_nothing_is_trained_either(case):
    with pytest.raises(ValueError, match="rehearse: for cpt and sft alone"):
        dpo.main([*case.flags, "--rehearse"])
    assert not case.runs.exists()


def test_what_a_killed_rehearsal_left_goes_with_the_next(case):
    left = case.runs / ".run.rehearsal"
    (left / "run").mkdir(parents=True)
    (left / "speed").write_text("x")
    rehearsed([*case.flags, "--loader.seq_len", "64"])
    assert not left.exists()
