"""What a checkpoint does when its disk fails: nothing damaged is trained from, nothing incomplete looks complete, and
the checkpoints beside it stay as they were.
"""

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import load_file

from logtrain.core.untrusted import read_sealed, sealed
from logtrain.training import checkpoint, checks, parts
from logtrain.training.optim import MOMENTS
from logtrain.training.optim_config import OptimConfig
from tests.support.program import Program
from tests.support.ranks import Ranks
from tests.support.synthetic import write_data, write_model
from tests.support.training import train

pytestmark = pytest.mark.slow

SETTINGS = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 130, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    """A finished run of 6 steps on 2 ranks' worth of rows, with checkpoints at 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = write_model(folder / "model", **SETTINGS)
    lengths = np.random.default_rng(3).integers(2, 32, 60).tolist()
    data = write_data(folder / "data", model, seq_len=32, lengths={"train": lengths, "valid": lengths[:6]})
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--optim.lr", "1e-3", "--trainer.max_steps"]
    flags += ["6", "--loader.seq_len", "32", "--loader.rows_per_step", "4"]
    flags += ["--trainer.save_every", "2", "--trainer.keep", "0", "--trainer.log_every", "1"]
    assert train([*flags, "--runs", str(folder)]) == 0
    return SimpleNamespace(folder=folder, flags=flags)


@pytest.fixture
def run(case, tmp_path) -> Path:
    """A copy of the run, to be damaged."""
    return shutil.copytree(case.folder / "run", tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        facts = json.loads(path.read_bytes())
        change(facts)
        path.write_text(json.dumps(facts))

    return damage


def forge(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Damage that its author has taken care to seal."""

    def damage(path: Path) -> None:
        facts = read_sealed(path)
        change(facts)
        path.write_bytes(sealed(facts))

    return damage


def link(path: Path) -> None:
    path.symlink_to(path.rename(path.parents[3] / "elsewhere"))


SHARD = "rank-00000.safetensors"
NO_FILE = {"bytes": 0, "crc32": 0}
DAMAGES = {
    "shard flipped": (SHARD, flip, f"corrupt checkpoint: {SHARD} has another checksum; remove it"),
    "shard cut": (SHARD, cut, rf"corrupt checkpoint: {SHARD} has \d+ bytes instead of \d+; remove it"),
    "shard missing": (SHARD, Path.unlink, f"corrupt checkpoint: {SHARD} is missing; remove it"),
    "a shard that is a link": (SHARD, link, f"corrupt checkpoint: {SHARD} is missing; remove it"),
    "state flipped": ("checkpoint.json", flip, "checkpoint.json: damaged"),
    "another step": ("checkpoint.json", edit(lambda f: f["state"].update(step=4)), "damaged .*has changed"),
    "sealed anew with another step": ("checkpoint.json", forge(lambda f: f["state"].update(step=4)), "is of step 4"),
    "a file elsewhere": ("checkpoint.json", forge(lambda f: f["files"].update({"../x": NO_FILE})), "names the file"),
    "a step that is text": ("checkpoint.json", forge(lambda f: f["state"].update(step="6")), "step = "),
    "a step below 0": ("checkpoint.json", forge(lambda f: f["state"].update(step=-6)), "is of step -6"),
    "state cut": ("checkpoint.json", lambda path: os.truncate(path, 200), "checkpoint.json: damaged .*; remove the"),
    "state empty": ("checkpoint.json", lambda path: os.truncate(path, 0), "checkpoint.json: damaged .*; remove"),
    "state a list": ("checkpoint.json", lambda path: path.write_text("[]"), "checkpoint.json: damaged .*; remove"),
    "state without files": ("checkpoint.json", edit(lambda facts: facts.pop("files")), "checkpoint.json: damaged"),
    "state without step": ("checkpoint.json", edit(lambda f: f["state"].pop("step")), "checkpoint.json: damaged"),
    "state missing": ("checkpoint.json", Path.unlink, "step-000006: not a complete checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_nothing_is_trained_from_a_damaged_checkpoint(case, run, damage: str):
    name, do, message = DAMAGES[damage]
    do(run / "checkpoints" / "step-000006" / name)
    before = contents(run / "checkpoints")
    with pytest.raises(ValueError, match=message):
        train([*case.flags, "--runs", str(run.parent), "--resume", "auto"])
    assert contents(run / "checkpoints") == before


def test_the_remedy_works(case, run):
    """`remove it to resume from an older one`: the end is the same."""
    weights = (run / "export" / "model.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints" / "step-000006")
    assert train([*case.flags, "--runs", str(run.parent), "--resume", "auto"]) == 0
    assert (run / "export" / "model.safetensors").read_bytes() == weights


def test_a_damaged_checkpoint_is_one_line_and_2(case, run):
    flip(run / "checkpoints" / "step-000006" / SHARD)
    program = Program([*case.flags, "--runs", str(run.parent), "--resume", "auto"], run.parent / "output")
    assert program.wait() == [2]
    assert program.output.read_text() == (
        f"error: {run}/checkpoints/step-000006: corrupt checkpoint: {SHARD} has another checksum; "
        f"remove it to resume from an older one\n"
    )


def momentum_alone(model: torch.nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, fused=True)


def test_an_optimizer_that_keeps_other_moments_goes_on_as_if_it_had_not_stopped(case, tmp_path, monkeypatch):
    """Its checkpoints hold what it keeps and nothing else; one of AdamW is not taken for one of its own."""
    monkeypatch.setattr(parts, "make_optimizer", momentum_alone)
    monkeypatch.setitem(MOMENTS, torch.optim.SGD, ("momentum_buffer",))
    flags = [*case.flags, "--runs", str(tmp_path), "--optim.lr", "0.1"]
    assert train(flags) == 0
    last = tmp_path / "run" / "checkpoints" / "step-000006"
    whole = load_file(last / SHARD)
    names = {name.removeprefix("model.") for name in whole if name.startswith("model.")}
    assert whole.keys() == {f"{kind}.{name}" for name in names for kind in ("model", "optimizer.momentum_buffer")}
    assert all(whole[f"optimizer.momentum_buffer.{name}"].any() for name in names)
    shutil.rmtree(last)
    assert train([*flags, "--resume", "auto"]) == 0
    again = load_file(last / SHARD)
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"does not fit this model: it has no tensor optimizer\.exp_avg\."):
        train([*flags, "--resume", "auto"])


# ---- saving fails


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def refuse_writing(patch: pytest.MonkeyPatch, step: int) -> None:
    """This process finds no room for its shards of checkpoint `step`."""
    original = checkpoint.write_tensors

    def write_tensors(file, tensors, note):
        if file.parent.name == f".step-{step:06d}.partial":
            file.write_bytes(b"half of it")
            raise NO_SPACE
        return original(file, tensors, note)

    patch.setattr(checkpoint, "write_tensors", write_tensors)


def train_with_a_full_disk_on(rank: int, flags: list[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=0))
        if int(os.environ["RANK"]) == rank:
            refuse_writing(patch, 4)
        try:
            return f"exit status {train(flags)}"
        except ValueError as error:
            return str(error)


@pytest.mark.parametrize("rank", [0, 1])
def test_no_space_on_any_rank_ends_all_with_the_reason(case, ranks: Ranks, tmp_path, rank: int):
    answers = ranks.run(2, train_with_a_full_disk_on, rank, [*case.flags, "--runs", str(tmp_path)])
    where = f"{tmp_path}/run/checkpoints: checkpoint not saved: No space left on device; free some and resume"
    assert answers == [where, where]
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == [".step-000004.partial", "step-000002"]
    assert ranks.run(2, train, [*case.flags, "--runs", str(tmp_path), "--resume", "auto"]) == [0, 0]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000004",
        "step-000006",
    ]


def test_a_failed_save_ends_the_run_at_once(case, tmp_path, monkeypatch):
    """And not at the next save: what was trained until then would be lost."""
    refuse_writing(monkeypatch, 20)
    flags = [*case.flags, "--runs", str(tmp_path), "--trainer.save_every", "20", "--trainer.max_steps", "60"]
    with pytest.raises(ValueError, match="checkpoint not saved"):
        train([*flags, "--trainer.epochs", "9"])
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert 20 <= max(record["step"] for record in records) < 40


@pytest.mark.parametrize("function", ["write_file", "sync"])
def test_what_rank_0_fails_at_alone_is_raised_on_all(case, ranks: Ranks, tmp_path, function: str):
    answers = ranks.run(2, train_with_a_failing, function, [*case.flags, "--runs", str(tmp_path)])
    reason = f"{tmp_path}/run/checkpoints: checkpoint not saved: Input/output error"
    assert answers == [reason, reason]


def train_with_a_failing(function: str, flags: list[str]) -> str:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, function, fail)
        try:
            return f"exit status {train(flags)}"
        except ValueError as error:
            return str(error)


def test_a_file_that_may_not_grow_is_one_line_and_2(case, tmp_path):
    """The system itself refuses: files of this process end at 60 kB, a checkpoint takes 300 kB."""
    program = Program([*case.flags, "--runs", str(tmp_path)], tmp_path / "output")
    resource.prlimit(program.processes[0].pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    assert program.wait() == [2]
    last = program.output.read_text().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/run/checkpoints: checkpoint not saved: ")
    assert "File too large" in last
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_too_little_room_is_refused_before_training(case, run, tmp_path, monkeypatch):
    parameters = sum(tensor.numel() for tensor in load_file(run / "export" / "model.safetensors").values())

    def start(*flags: str, free: float) -> int:
        """With so many bytes free for each parameter."""
        room = SimpleNamespace(free=int(free * parameters))
        monkeypatch.setattr(checks, "disk_usage", lambda _folder: room)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        return train([*case.flags, "--runs", str(tmp_path / "new"), *flags])

    export = 4  # bytes a parameter, fp32
    for flags, checkpoints in (
        (["--trainer.keep", "1"], 2),  # one more while it is written
        (["--trainer.keep", "0"], 3),  # all
        (["--trainer.save_every", "6"], 1),  # no more than there will be
    ):
        needed = 12 * checkpoints + export
        with pytest.raises(ValueError, match=f"B needed for {checkpoints} checkpoints and the export"):
            start(*flags, free=needed - 0.1)
        assert start(*flags, free=needed) == 0
    assert start("--runs", str(run.parent), "--resume", "auto", free=export) == 0  # three are there already


# ---- export by command


def test_a_checkpoint_is_exported_on_other_ranks_as_it_was_live(case, run, tmp_path):
    """Of a run on one rank: its last checkpoint on two, and its first, which differs."""
    live = load_file(run / "export" / "model.safetensors")
    flags = ["--run", str(run), "--output"]
    program = Program([*flags, str(tmp_path / "last")], tmp_path / "output", ranks=2, entry="logtrain.export")
    assert program.wait() == [0, 0], program.output.read_text()
    assert contents_of(tmp_path / "last") == contents_of(run / "export")
    comparison = orjson.loads((tmp_path / "last.json").read_bytes())
    assert comparison["exported_loss"] == comparison["live_loss"]
    assert f"step-000006 -> {tmp_path / 'last'} (float32): loss" in program.output.read_text()

    scores = {"models": {"cpt": {"metrics": {"fuzzy": {"mean": 0.4375}}}}, "data": {"path": "/a/TEST.json"}}
    (tmp_path / "scores.json").write_bytes(orjson.dumps(scores))
    flags += [str(tmp_path / "first"), "--step", "2", "--dtype", "bfloat16"]
    flags += ["--scores", f"cpt={tmp_path / 'scores.json'}"]
    program = Program(flags, tmp_path / "output", entry="logtrain.export")
    assert program.wait() == [0], program.output.read_text()
    assert "| TEST.json | fuzzy | 0.4375 |" in (tmp_path / "first" / "README.md").read_text()
    first = load_file(tmp_path / "first" / "model.safetensors")
    assert {tensor.dtype for tensor in first.values()} == {torch.bfloat16}
    assert any(not torch.equal(first[name], live[name].bfloat16()) for name in live)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--step", "3"], "checkpoints: no checkpoint of step 3; there are: 2, 4, 6"),
        (["--output", "{run}"], "run: exists already; choose another --output"),
        (["--run", "{run}/checkpoints"], "checkpoints: not a run (no config.toml)"),
    ],
)
def test_export_refuses_what_is_not_there(run, tmp_path, flags: list[str], message: str):
    given = ["--run", str(run), "--output", str(tmp_path / "new"), *(flag.format(run=run) for flag in flags)]
    program = Program(given, tmp_path / "output", entry="logtrain.export")
    assert program.wait() == [2]
    assert program.output.read_text().startswith("error: ")
    assert program.output.read_text().endswith(f"{message}\n")
