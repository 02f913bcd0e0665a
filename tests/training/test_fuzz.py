"""Random damage to a checkpoint, and indexes and headers of tensors that somebody has sealed anew: whoever resumes from
it gets what was saved, or a ValueError of one line.

LOGTRAIN_FUZZ=N: N times as many examples, other ones each time.
"""

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logtrain.core.untrusted import read_sealed, sealed
from logtrain.training.checkpoint import FACTS, Checkpoints
from logtrain.training.optim import make_optimizer
from logtrain.training.optim_config import OptimConfig
from logtrain.training.state import RowLosses, ShareChange, TrainState

TIMES = int(os.environ.get("LOGTRAIN_FUZZ", "0"))
slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
fuzz = settings(max_examples=120 * max(1, TIMES), derandomize=not TIMES, suppress_health_check=slow)
SHARD = "rank-00000.safetensors"
numbers = st.one_of(st.integers(-2, 9), st.sampled_from([2**31, 2**63, -(2**63), 10**39]), st.floats())
texts = st.text(max_size=5) | st.sampled_from(["\ud800", "..", "/dev/zero"])
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
edits = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "drop", "zero"]), st.integers(0, 2**31), st.binary(max_size=9)),
    min_size=1,
    max_size=3,
)


def saved_model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3, bias=False))


class Saved:
    """A checkpoint that was saved, and what was in it."""

    def __init__(self, folder: Path):
        self.checkpoints = Checkpoints(folder)
        self.checkpoints.clean()
        model, rows = saved_model(), {"f valid": RowLosses([1.5, 2.5], [3, 4])}
        optimizer = make_optimizer(model, OptimConfig())
        model(torch.ones(2, 6)).sum().backward()
        optimizer.step()
        self.state = TrainState("f", 8, step=1, tokens=90, targets=80, best_loss=1.5, start_rows=rows)
        self.state.share_changes.append(ShareChange(1, 0.2, 0.01))
        self.checkpoints.save(model, optimizer, self.state)
        self.checkpoints.wait()
        self.tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.path = folder / "step-000001"

    def load(self) -> tuple[TrainState, dict[str, torch.Tensor]]:
        """What a resumed run gets."""
        model = saved_model()
        for parameter in model.parameters():
            parameter.data.zero_()
        state = self.checkpoints.load(self.path, model, make_optimizer(model, OptimConfig()))
        return state, model.state_dict()

    def ends(self, name: str, content: bytes, facts: Callable[[dict], object] | None = None) -> bool:
        """Holds a resumed run to its word while a file has another content, and the index other `facts`; -> whether it
        took the checkpoint.
        """
        before = {file: file.read_bytes() for file in self.path.iterdir()}
        (self.path / name).write_bytes(content)
        try:
            if facts:
                found = read_sealed(self.path / FACTS)
                facts(found)
                (self.path / FACTS).write_bytes(sealed(found))
            self.state_now, self.tensors_now = self.load()
        except ValueError as error:
            assert "\n" not in str(error)
            assert str(self.path) in str(error)
            assert len(str(error)) < 5000
            return False
        finally:
            for file, was in before.items():
                file.write_bytes(was)
        return True

    def is_as_saved(self) -> bool:
        return self.state_now == self.state and all(
            self.tensors_now[name].equal(tensor) for name, tensor in self.tensors.items()
        )


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Iterator[Saved]:
    folder = tmp_path_factory.mktemp("saved")
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    of = Saved(folder / "checkpoints")
    yield of
    of.checkpoints.close()


def edited(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, where, extra in changes:
        at = where % (len(content) + 1)
        head, tail = content[:at], content[at:]
        content = {
            "flip": head + bytes(byte ^ (1 << where % 8) for byte in tail[:1]) + tail[1:],
            "cut": head,
            "insert": head + extra + tail,
            "drop": head + tail[len(extra) :],
            "zero": head + bytes(len(tail[:99])) + tail[99:],
        }[kind]
    return content


@given(changes=edits, name=st.sampled_from([FACTS, SHARD]))
@fuzz
def test_damaged_checkpoints(saved, changes, name):
    content = (saved.path / name).read_bytes()
    now = edited(content, changes)
    assert saved.ends(name, now) == (now == content)
    assert now != content or saved.is_as_saved()


@given(path=st.lists(st.integers(0, 9), min_size=1, max_size=6), value=values, has_key=st.booleans())
@fuzz
def test_other_indexes_with_a_seal(saved, path, value, has_key):
    facts = read_sealed(saved.path / FACTS)
    place = facts
    for step, index in enumerate(path):
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = keys[index % len(keys)]
        if step == len(path) - 1 or not place[key] or not isinstance(place[key], dict | list):
            place[key] = value
            if not has_key:
                del place[key]
            break
        place = place[key]
    try:
        content = sealed(facts)
    except ValueError:  # of an integer beyond what Python writes
        return
    saved.ends(FACTS, content)


entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64", "F65", "", None]) | values,
        "shape": st.lists(st.integers(-1, 400), max_size=3) | values,
        "data_offsets": st.lists(st.integers(-1, 2000), min_size=2, max_size=2) | values,
    }
)


@given(name=st.sampled_from(["model.0.weight", "optimizer.exp_avg.0.weight", "__metadata__", "x"]),
       entry=entries | values, cut=st.integers(-8, 8), data=st.data())  # fmt: skip
@fuzz
def test_other_headers_of_tensors_with_a_seal(saved, name, entry, cut, data):
    content = (saved.path / SHARD).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, raw = json.loads(content[8 : 8 + size]), bytearray(content[8 : 8 + size])
    if data.draw(st.booleans()):
        header[name] = entry
        if data.draw(st.booleans()):
            header["__metadata__"] = {"first_rows": json.dumps(data.draw(values | st.just({name: -1})))}
        raw = json.dumps(header).encode()
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    now = struct.pack("<Q", max(0, len(raw) + cut)) + bytes(raw) + content[8 + size :]
    facts = {"bytes": len(now), "crc32": zlib.crc32(now)}
    saved.ends(SHARD, now, lambda found: found["files"].update({SHARD: facts}))
