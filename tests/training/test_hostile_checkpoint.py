"""A checkpoint that somebody has made to harm: nothing in it runs, nothing in it is unpickled, and it is one line."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from logtrain.core.untrusted import read_sealed, sealed
from tests.support.synthetic import write_data, write_model
from tests.support.training import train

SHARD, FACTS = "rank-00000.safetensors", "checkpoint.json"
CALLS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen")
OURS = ("logtrain", "builtins", "pathlib", "collections")  # what ranks of one run tell each other
seen: list[str] | None = None


def watch(event: str, arguments: tuple) -> None:
    if seen is not None and (event in CALLS or (event == "pickle.find_class" and not arguments[0].startswith(OURS))):
        seen.append(f"{event} {arguments}")


sys.addaudithook(watch)  # for the life of the process


@pytest.fixture
def watched() -> Iterator[list[str]]:
    """What runs, or is unpickled, in this process until the test ends."""
    global seen
    seen = []
    yield seen
    seen = None


class Calls:
    """Pickles to a call."""

    def __init__(self, call: Callable, *arguments: object):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def saved_by_torch(trace: Path) -> bytes:
    file = trace.with_name("torch.pt")
    torch.save({"model.embedding.weight": Calls(os.system, f"touch {trace}")}, file)
    return file.read_bytes()


GADGETS = {  # what a reader of pickles would obey, each in another way, or never come to the end of
    "os.system": lambda trace: pickle.dumps(Calls(os.system, f"touch {trace}")),
    "eval": lambda trace: pickle.dumps(Calls(eval, f"open({str(trace)!r}, 'w')")),
    "exec": lambda trace: pickle.dumps(Calls(exec, f"open({str(trace)!r}, 'w')")),
    "subprocess": lambda trace: pickle.dumps(Calls(subprocess.getoutput, f"touch {trace}")),
    "open": lambda trace: pickle.dumps(Calls(open, str(trace), "w")),
    "import": lambda trace: b"cos\nsystem\n(S'touch %s'\ntR." % os.fsencode(trace),
    "bytes within bytes": lambda trace: pickle.dumps(Calls(pickle.loads, GADGETS["os.system"](trace))),
    "nested tuples": lambda trace: b"(" + b"0(" * 10 + b"\x8c\x01x" + b"\x94\x86\x94h\x00" * 15 + b".",
    "torch.save": saved_by_torch,
}


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("hostile")
    model = write_model(folder / "model", hidden_size=32, intermediate_size=48, vocab_size=130, num_attention_heads=4)
    data = write_data(folder / "data", model, seq_len=32, lengths={"train": [32] * 8})
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--runs", str(folder)]
    assert train([*flags, "--loader.seq_len", "32", "--loader.rows_per_step", "4"]) == 0
    return SimpleNamespace(run=folder / "run")


@pytest.fixture
def checkpoint(case, tmp_path) -> Path:
    """The last checkpoint of a copy of the run, to be tampered with."""
    shutil.copytree(case.run, tmp_path / "run")
    return tmp_path / "run" / "checkpoints" / "step-000002"


def export(checkpoint: Path) -> int:
    run = checkpoint.parents[1]
    return train(["--run", str(run), "--output", str(run.parent / "out")], "logtrain.export")


def seal_anew(checkpoint: Path) -> None:
    """Sizes, checksums and hashes fit, as an author of harm sees to."""
    facts = read_sealed(checkpoint / FACTS)
    content = (checkpoint / SHARD).read_bytes()
    facts["files"][SHARD] = {"bytes": len(content), "crc32": zlib.crc32(content)}
    (checkpoint / FACTS).write_bytes(sealed(facts))


COMMIT = ("'rev-parse', 'HEAD'", "'status', '--porcelain', '--untracked-files=no', '.'")
"""What core/lineage.py asks git, so that an export says which code made it."""


def test_an_honest_one_is_exported_without_a_pickle(checkpoint, watched):
    assert export(checkpoint) == 0
    asked = [event.partition("], ")[0] for event in watched]
    assert asked == [f"subprocess.Popen ('git', ['git', {words}" for words in COMMIT], "the code's own commit alone"


@pytest.mark.parametrize("name", [SHARD, FACTS])
@pytest.mark.parametrize("gadget", GADGETS)
def test_no_gadget_runs(checkpoint, tmp_path, watched, gadget: str, name: str):
    """As a shard, and as the facts; beside them as the index that torch's own format would have."""
    content = GADGETS[gadget](tmp_path / "trace")
    watched.clear()
    for file in (name, ".metadata"):
        (checkpoint / file).write_bytes(content)
    if name == SHARD:
        seal_anew(checkpoint)
    with pytest.raises(ValueError) as refused:
        export(checkpoint)
    assert str(refused.value).startswith(str(checkpoint))
    assert "\n" not in str(refused.value)
    assert watched == []
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "out").exists()


def test_one_of_another_run_is_refused(checkpoint, tmp_path):
    """Of the same model, data and step: a whole folder that lies in the place of the run's own."""
    facts = read_sealed(checkpoint / FACTS)
    assert facts["file"] == "checkpoint" and len(facts["run"]) == 12
    (checkpoint / FACTS).write_bytes(sealed(facts | {"run": "0" * 12}))
    with pytest.raises(ValueError, match=r"another file lies in its place: checkpoint of run 000000000000.*; remove"):
        export(checkpoint)
    (checkpoint / FACTS).write_bytes(sealed({key: facts[key] for key in ("state", "files")}))
    assert export(checkpoint) == 0, "one of an older version names none"


def reshaped(tensors: dict, first_rows: dict) -> None:
    tensors["model.head.weight"] = tensors["model.head.weight"].T.contiguous()


def cut_short(tensors: dict, first_rows: dict) -> None:
    tensors["model.head.weight"] = tensors["model.head.weight"][:-1]


def moved(tensors: dict, first_rows: dict) -> None:
    first_rows["model.head.weight"] = 1


def named_nowhere(tensors: dict, first_rows: dict) -> None:
    del first_rows["model.head.weight"]


def first_row_a_word(tensors: dict, first_rows: dict) -> None:
    first_rows["model.head.weight"] = "0"


def of_bf16(tensors: dict, first_rows: dict) -> None:
    tensors["model.head.weight"] = tensors["model.head.weight"].bfloat16()


def one_more(tensors: dict, first_rows: dict) -> None:
    tensors["model.back_door"], first_rows["model.back_door"] = torch.zeros(3), 0


def one_less(tensors: dict, first_rows: dict) -> None:
    del tensors["optimizer.exp_avg.head.weight"], first_rows["optimizer.exp_avg.head.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reshaped, r"model.head.weight is F32 \[32, 130\], the model has F32 \[130, 32\]"),
        (cut_short, r"model.head.weight is F32 \[129, 32\], the model has F32 \[130, 32\]"),
        (moved, "model.head.weight: rows 0 to 1 are missing or there twice"),
        (named_nowhere, f"{SHARD}: not written by a save"),
        (first_row_a_word, f"{SHARD}: not written by a save"),
        (of_bf16, "model.head.weight is BF16"),
        (one_more, "it has an unexpected tensor model.back_door"),
        (one_less, "it has no tensor optimizer.exp_avg.head.weight"),
    ],
)
def test_what_the_model_does_not_expect_is_refused(checkpoint, tmp_path, change: Callable, message: str):
    """Though sizes, checksums and hashes fit."""
    tensors = load_file(checkpoint / SHARD)
    with safe_open(checkpoint / SHARD, framework="pt") as file:
        first_rows = json.loads(file.metadata()["first_rows"])
    change(tensors, first_rows)
    save_file(tensors, checkpoint / SHARD, metadata={"format": "pt", "first_rows": json.dumps(first_rows)})
    seal_anew(checkpoint)
    with pytest.raises(ValueError, match=f"does not fit this model: .*{message}"):
        export(checkpoint)
    assert not (tmp_path / "out").exists()
