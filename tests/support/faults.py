"""What goes wrong on users' machines, done to a set-up that is good: what is done, the flags, what must be said."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from logtrain.core.atomic import write_file
from logtrain.core.lock import Lock
from logtrain.model import hf
from logtrain.training import trainer
from logtrain.training.run import train
from tests.support.finetuning import as_chats
from tests.support.synthetic import change_manifest, edit_json, write_data, write_tokenizer
from tests.support.training import train as trained

SEQ_LEN = 32
LATE = "model.layers.3.mlp.up_proj.weight"
INDEX = "model.safetensors.index.json"
Case = SimpleNamespace  # folder, model, data, runs; monkeypatch


class Fault(NamedTuple):
    """Something that goes wrong."""

    do: Callable[[Case], object]
    said: str
    flags: tuple[str, ...] = ()
    work: Callable[..., int] = train


def edit_weights(case: Case, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """Change, or remove, a tensor in the file that has it."""
    index = json.loads((case.model / INDEX).read_text())
    file = case.model / index["weight_map"][name]
    tensors = load_file(file)
    changed = change(tensors.pop(name))
    save_file(tensors | ({} if changed is None else {name: changed}), file, metadata={"format": "pt"})


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor[-1, -1] = float("nan")
    return tensor


def shard(case: Case, suffix: str = "tokens.npy") -> Path:
    """The last shard of the training split."""
    found = sorted(case.data.glob(f"train-*.{suffix}"))
    assert len(found) > 1
    return found[-1]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_tokenizer(case: Case, name: str) -> Path:
    """A prepared folder for another tokenizer of as many ids."""
    folder = write_tokenizer(case.folder / f"tokenizer-{name}", 130)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"w5": 5', '"w5": 6').replace('"w6": 6', '"w6": 5'))
    lengths = {"train": [9, 20], "valid": [9, 20]}
    return write_data(case.folder / name, folder, seq_len=SEQ_LEN, lengths=lengths)


def chats(case: Case, name: str, template: str | None = None) -> Path:
    """The data as chats; `template`: another one than `as_chats` gives."""
    folder = as_chats(shutil.copytree(case.data, case.folder / name))
    if template is not None:
        from logtrain.data.prepared import sha256_of

        chat = {"template_path": "", "template": template, "template_sha256": sha256_of(template), "named_tokens": {}}
        change_manifest(folder, chat=chat)
    return folder


def small_disk(case: Case, size: str) -> None:
    """A disk of that size below the runs."""
    case.runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "rehearsal", case.runs], check=True)
    case.clean.append(lambda: subprocess.run(["umount", "-l", case.runs], check=True))


def read_only(case: Case) -> None:
    small_disk(case, "1m")
    subprocess.run(["mount", "-o", "remount,ro", case.runs], check=True)


def taken_port(case: Case) -> int:
    """A port at which something listens."""
    listener = socket.socket()
    listener.bind(("", 0))
    listener.listen()
    case.clean.append(listener.close)
    return listener.getsockname()[1]


def take(case: Case, port: int = 29555) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", port))
    listener.listen()
    case.clean.append(listener.close)


def launched_at_a_taken_port(case: Case) -> None:
    world = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**world, "MASTER_PORT": str(taken_port(case))}.items():
        case.monkeypatch.setenv(name, value)


def begun(case: Case) -> None:
    """A run of these settings that was stopped after step 3."""
    assert trained([*case.flags, "--trainer.stop_after", "3"]) == 75


def begun_and_cut(case: Case) -> None:
    begun(case)
    os.truncate(case.runs / "run" / "checkpoints" / "step-000003" / "rank-00000.safetensors", 1000)


def begun_and_open(case: Case) -> None:
    begun(case)
    case.clean.append(Lock(case.runs / "run" / ".lock").close)


def little(case: Case, module: str, **values: int) -> None:
    """Disks that seem to have that much free."""
    real = shutil.disk_usage
    case.monkeypatch.setattr(f"{module}.disk_usage", lambda path: real(path)._replace(**values))


def limited(case: Case, size: int) -> None:
    """Files may have no more bytes than that."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    case.clean.append(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before))


def without_temporary(case: Case) -> None:
    case.monkeypatch.setattr(tempfile, "tempdir", str(case.folder / "gone"))


# ---- what goes wrong in the process that trains


def out_of_memory_at_validation(config, stop) -> int:
    def validate(model, loader, num_steps, world, *_):
        world.note("validation, step 1 of 1")
        torch.empty(1 << 56)

    trainer.validate = validate
    return train(config, stop)


def no_memory_at_the_start(config, stop) -> int:
    raise MemoryError


def no_memory_at_validation(config, stop) -> int:
    def validate(model, loader, num_steps, world, *_):
        world.note("validation, step 1 of 1")
        raise MemoryError

    trainer.validate = validate
    return train(config, stop)


def ended_by_the_system(config, stop) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def disk_that_fails(config, stop) -> int:
    """The checkpoint of step 2 cannot be written."""
    import logtrain.training.checkpoint as module

    def refused(*_):
        raise OSError(28, "No space left on device")

    module.write_tensors = refused
    return train(config, stop)


def export_that_changes(config, stop) -> int:
    """A tensor is written wrong."""
    real = hf.save_tensors

    def wrong(folder, shape, tensors, dtype):
        real(folder, shape, ((name, tensor * 50 if "head" in name else tensor) for name, tensor in tensors), dtype)

    hf.save_tensors = wrong
    return train(config, stop)


def nothing(_: Case) -> None:
    """The flags alone are wrong."""


BROKEN = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"  # the loop has no end
ROOT_FAULTS = ("full disk", "read-only folder")  # need a tmpfs
FAULTS: dict[str, Fault] = {
    "NaN in a late layer": Fault(lambda c: edit_weights(c, LATE, with_nan), f"{LATE} is not finite in row 47"),
    "zeros in a late layer": Fault(lambda c: edit_weights(c, LATE, torch.zeros_like), f"{LATE} has nothing but zeros"),
    "index missing": Fault(lambda c: (c.model / INDEX).unlink(), "neither model.safetensors nor"),
    "weight file missing": Fault(lambda c: sorted(c.model.glob("*.safetensors"))[-1].unlink(), "no such file"),
    "weight file cut": Fault(
        lambda c: os.truncate(sorted(c.model.glob("*.safetensors"))[-1], 2000), "damaged or cut short"
    ),
    "tensor missing": Fault(lambda c: edit_weights(c, LATE, lambda _: None), f"no tensor {LATE}"),
    "wrong dtype": Fault(lambda c: edit_weights(c, LATE, torch.Tensor.short), f"{LATE} has dtype I16"),
    "config of another shape": Fault(
        lambda c: edit_json(c.model / "config.json", intermediate_size=64), "config.json asks for"
    ),
    "config of more layers": Fault(lambda c: edit_json(c.model / "config.json", num_hidden_layers=6), "no tensor"),
    "not a Llama": Fault(lambda c: edit_json(c.model / "config.json", model_type="qwen3"), "is not supported"),
    "tokenizer of another model": Fault(
        lambda c: shutil.copy(other_tokenizer(c, "o").parent / "tokenizer-o" / "tokenizer.json", c.model),
        "the tokenizer has changed since",
    ),
    "bad last shard": Fault(lambda c: flip(shard(c)), "damaged (its checksum"),
    "shard missing": Fault(lambda c: shard(c, "documents.npy").unlink(), "documents.npy: "),
    "manifest edited": Fault(lambda c: edit_json(c.data / "manifest.json", format_version=2), "format version 2"),
    "rows too long": Fault(nothing, "knows 64 positions", ("--loader.seq_len", "128")),
    "rows of another length": Fault(nothing, "was prepared for 32", ("--loader.seq_len", "64")),
    "validation set of another tokenizer": Fault(
        lambda c: other_tokenizer(c, "other"), "was prepared with another tokenizer", ("--valid", "o={c.folder}/other")
    ),
    "validation set without documents": Fault(
        lambda c: write_data(c.folder / "bare", c.model, seq_len=SEQ_LEN, lengths={"train": [9]}),
        "no documents in split 'valid'",
        ("--valid", "bare={c.folder}/bare"),
    ),
    "validation set without targets": Fault(
        lambda c: write_data(
            c.folder / "mute", c.model, seq_len=SEQ_LEN, lengths={"valid": [9], "train": [9]}, context=1.0
        ),
        "nothing is to be predicted",
        ("--valid", "mute={c.folder}/mute"),
    ),
    "templates that differ": Fault(
        lambda c: (chats(c, "a"), chats(c, "b", BROKEN)),
        "different chat templates",
        ("--data", "a={c.folder}/a", "b={c.folder}/b", "--mix.a", "0.5", "--mix.b", "0.5"),
    ),
    "wrong template": Fault(lambda c: chats(c, "a", BROKEN), "template", ("--data", "{c.folder}/a")),
    "full disk": Fault(lambda c: small_disk(c, "600k"), "needed for 1 checkpoints and the export"),
    "read-only folder": Fault(read_only, "Read-only file system"),
    "file limit": Fault(lambda c: limited(c, 1 << 18), "ulimit -f unlimited"),
    "output is a file": Fault(lambda c: (c.runs.mkdir(), write_file(c.runs / "run", b"x")), "exists and is not a run"),
    "runs is a file": Fault(lambda c: c.runs.write_text("x"), "{c.runs}"),
    "a run is there": Fault(begun, "holds a run already"),
    "the run is going on": Fault(begun_and_open, "in use by", ("--resume", "auto")),
    "other data on resume": Fault(
        lambda c: (
            write_data(c.folder / "new", c.model, seq_len=SEQ_LEN, lengths={"train": [20] * 60, "valid": [9]}, seed=5),
            begun(c),
        ),
        "has been prepared anew since",
        ("--resume", "auto", "--data", "{c.folder}/new"),
    ),
    "other settings on resume": Fault(begun, "was started with optim.lr", ("--resume", "auto", "--optim.lr", "1e-4")),
    "checkpoint cut": Fault(begun_and_cut, "corrupt checkpoint", ("--resume", "auto")),
    "port of Prometheus taken": Fault(lambda c: take(c, 29555), "choose another port", ("--prometheus", "29555")),
    "port of the ranks taken": Fault(launched_at_a_taken_port, "no way to 127.0.0.1"),
    "no room in /dev/shm": Fault(lambda c: little(c, "logtrain.readiness.machine", free=1000), "--shm-size"),
    "no folder for temporary files": Fault(without_temporary, "set TMPDIR"),
    "memory of the machine": Fault(
        lambda c: c.monkeypatch.setattr("logtrain.readiness.machine.memory_of_machine", lambda: 1000), "use more ranks"
    ),
    "tracker not installed": Fault(
        lambda c: c.monkeypatch.setitem(
            __import__("logtrain.observe.trackers", fromlist=["TRACKERS"]).TRACKERS, "mlflow", (None, "no_such_module")
        ),
        "track = mlflow: not installed",
        ("--track", "mlflow"),
    ),
    "ranks that do not divide": Fault(nothing, "does not divide the 1 ranks", ("--parallel.shard_ranks", "3")),
    "more steps than there are": Fault(nothing, "gives 40 steps; raise it", ("--trainer.max_steps", "41")),
    "steps of more rows than an epoch": Fault(
        nothing,
        "trainer.epochs = 1 gives 1 steps; raise it",
        ("--loader.rows_per_step", "200", "--loader.rows_per_batch", "50"),  # one by one they take 36 s
    ),
    "a price that is no number": Fault(nothing, "price = nan: expected a number", ("--price", "nan")),
    "name of the folder above": Fault(nothing, "name = '..': expected the name of a folder", ("--name", "..")),
    "name that is too long": Fault(nothing, "has 232 bytes, at most 231", ("--name", "n" * 232)),
    "learning rate": Fault(nothing, "training has diverged", ("--optim.lr", "1e30")),
    "out of memory at validation": Fault(nothing, "out of memory at validation", work=out_of_memory_at_validation),
    "no memory at the start": Fault(nothing, "out of memory at the start; give", work=no_memory_at_the_start),
    "no memory at validation": Fault(nothing, "out of memory at validation", work=no_memory_at_validation),
    "ended by the system": Fault(nothing, "ended by SIGKILL", work=ended_by_the_system),
    "disk that fails": Fault(nothing, "checkpoint not saved", work=disk_that_fails),
    "export that changes": Fault(nothing, "reads back with loss", work=export_that_changes),
    "wrong field": Fault(
        lambda c: (c.folder / "my.toml").write_text("[optim]\nlearning_rate = 1.0\n"),
        "my.toml:2: optim.learning_rate: unknown key",
        ("{c.folder}/my.toml",),
    ),
}
