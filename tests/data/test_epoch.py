"""Epochs are computed one ahead in the background, once a node, and none that is not needed."""

import copy
import hashlib
import mmap
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from logtrain.data.config import LoaderConfig
from logtrain.data.epoch import Epoch, Epochs, Shared, pack_epoch
from logtrain.data.loader import Loader
from logtrain.data.shards import DOCUMENT, ShardWriter, Split
from tests.support.synthetic import write_manifest

CONFIG = LoaderConfig(seq_len=64, rows_per_step=4)
STEPS = 6  # of an epoch


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Split:
    folder = tmp_path_factory.mktemp("data")
    lengths = np.random.default_rng(1).integers(2, 30, 90)
    writer, records = ShardWriter(folder, "train", shard_tokens=500), np.zeros(len(lengths), DOCUMENT)
    records["length"], records["targets"] = lengths, lengths - 1
    writer.add(np.arange(lengths.sum(), dtype=np.uint32), records)
    write_manifest(folder, {"train": writer.close()})
    return Split.open(folder)


@pytest.fixture
def loader(split, monkeypatch) -> Loader:
    """With `computed`, (number, thread) of epochs that were packed, and `before`, which is called before each."""
    loader = Loader(split, CONFIG, seed=7, pad_id=0)
    assert loader.steps_per_epoch == STEPS
    loader.computed, loader.before, compute = [], lambda number: None, loader.epochs.compute

    def recorded(number: int) -> Epoch:
        loader.computed.append((number, threading.current_thread().name))
        loader.before(number)
        return compute(number)

    loader.epochs.compute = recorded
    return loader


def settled(loader: Loader) -> list[int]:
    """The epochs that were packed, when no thread packs any more."""
    deadline = time.monotonic() + 10
    while any(thread.name == "epoch" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {thread for _, thread in loader.computed} <= {"epoch"}
    return [number for number, _ in loader.computed]


def test_the_next_epoch_is_packed_from_the_first_step_on_and_no_other(loader):
    steps = iter(loader)
    next(steps)
    assert settled(loader) == [1]
    for _ in range(STEPS):  # the first step of the second epoch is the last of these
        next(steps)
    assert settled(loader) == [1, 2]
    steps.close()


@pytest.mark.parametrize(("end", "expected"), [(6, []), (7, [1]), (12, [1]), (13, [1, 2])])
def test_none_is_packed_that_the_run_does_not_reach(loader, end, expected):
    loader.end = end
    assert len(list(loader)) == end
    assert settled(loader) == expected


def test_steps_go_on_while_the_next_epoch_is_packed(loader):
    done = threading.Event()
    loader.before = lambda number: done.wait(60)
    steps = iter(loader)
    for _ in range(STEPS):
        next(steps)
    assert [number for number, _ in loader.computed] == [1]
    threading.Timer(0.1, done.set).start()
    assert next(steps).targets > 0
    steps.close()


def test_an_error_reaches_the_training_loop_where_the_epoch_is_needed(loader):
    def fails(number: int) -> None:
        raise OSError(f"no epoch {number}")

    loader.before = fails
    taken = []
    with pytest.raises(OSError, match="no epoch 1"):
        for step in loader:
            taken.append(step)
            time.sleep(0.01)
    assert len(taken) == STEPS


def test_what_is_kept_are_two_epochs(split):
    epochs = Epochs(lambda number: pack_epoch(split, CONFIG, 7, number, STEPS))
    for number in range(5):
        assert epochs[number] is epochs[number]
    assert sorted(epochs.futures) == [3, 4]


def test_an_epoch_is_packed_within_23_bytes_a_document(split):
    """The 4 of the C++ packer come when others are free. Arrays of 64 bits for what blocks do took twice as much."""
    length_D = np.random.default_rng(2).lognormal(np.log(296), 0.9, 1_000_000).astype(np.int32) + 2
    split = copy.copy(split)
    split.parts = lambda: ((length_D[i : i + 100_000], length_D[i : i + 100_000] - 1) for i in range(0, 10**6, 100_000))
    config = LoaderConfig(seq_len=8192, rows_per_step=100)  # a number of rows that does not come out even
    tracemalloc.start()
    try:
        epoch = pack_epoch(split, config, 7, 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert epoch.tokens_R.sum(dtype=np.int64) > length_D.sum(dtype=np.int64)  # some were cut
    assert peak / len(length_D) < 23
    assert epoch.nbytes / len(length_D) < 10


# Shared by the ranks of a node

PROGRAM = """
import hashlib, sys
from pathlib import Path
from logtrain.data import epoch as epochs
from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader
from logtrain.data.shards import Split

data, folder, packs = sys.argv[1:]
packed = []
original = epochs.pack_epoch

import logtrain.data.loader as module
module.pack_epoch = lambda *args: packed.append(args[3]) or original(*args)
shared = epochs.Shared(Path(folder), packs == "packs")
loader = Loader(Split.open(data), LoaderConfig(seq_len=64, rows_per_step=4), seed=7, pad_id=0, shared=shared)
loader.end = 3 * loader.steps_per_epoch
digest = hashlib.sha256()
for step in loader:
    for batch in step.batches:
        digest.update(batch.tokens_T.numpy().tobytes() + batch.cu_seqlens.numpy().tobytes())
    digest.update(repr((step.tokens, step.targets, step.attention_pairs)).encode())
print(digest.hexdigest(), packed, "lengths" in loader.split.__dict__)
"""


def test_one_process_packs_and_the_other_reads_what_each_would_pack(split, tmp_path):
    digest = hashlib.sha256()
    alone = Loader(split, CONFIG, seed=7, pad_id=0)
    alone.end = 3 * STEPS
    for step in alone:
        for batch in step.batches:
            digest.update(batch.tokens_T.numpy().tobytes() + batch.cu_seqlens.numpy().tobytes())
        digest.update(repr((step.tokens, step.targets, step.attention_pairs)).encode())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, split.folder, tmp_path / "shared", role], stdout=subprocess.PIPE, text=True
        )
        for role in ("reads", "packs")
    ]
    reads, packs = (process.communicate(timeout=120)[0].strip() for process in processes)
    assert reads == f"{digest.hexdigest()} [] False"  # neither holds the lengths of all documents
    assert packs == f"{digest.hexdigest()} [0, 1, 2] False"


@pytest.mark.parametrize(("kept_bytes", "expected"), [(0, [4, 5]), (3.5, [3, 4, 5]), (1000, [0, 1, 2, 3, 4, 5])])
def test_two_epochs_are_kept_and_more_of_small_ones(split, tmp_path, monkeypatch, kept_bytes, expected):
    """A rank that is slow to open an epoch of a step finds it although others are some steps ahead."""
    size = pack_epoch(split, CONFIG, 7, 0).nbytes
    monkeypatch.setattr("logtrain.data.epoch.KEPT_BYTES", int(kept_bytes * size))
    shared = Epochs(lambda number: pack_epoch(split, CONFIG, 7, number, STEPS), Shared(tmp_path, packs=True))
    opened = [shared[number] for number in range(6)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"epoch-{number}" for number in expected]
    again = pack_epoch(split, CONFIG, 7, 0, STEPS)
    assert all(np.array_equal(*pair) for pair in zip(opened[0], again, strict=True))  # what is open stays readable


@pytest.mark.parametrize("attention", ["document", "row"])
def test_what_is_read_is_what_was_written_and_in_memory_only_as_a_map(split, tmp_path, attention):
    config = LoaderConfig(seq_len=16, rows_per_step=4, attention=attention)  # documents are cut
    shared = Epochs(lambda number: pack_epoch(split, config, 7, number), Shared(tmp_path / "a", packs=True))
    expected = pack_epoch(split, config, 7, 0)
    for name, found, array in zip(Epoch._fields, shared[0], expected, strict=True):
        assert np.array_equal(found, array), name
        assert found.dtype == array.dtype
        base = found
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base, mmap.mmap)


def mapped_kib(folder: Path) -> int:
    """What this process has in memory of the files of a folder."""
    found, is_inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0] in "0123456789abcdef":  # of a mapping: the lines below it begin with an upper-case letter
            is_inside = str(folder) in line
        elif is_inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


def test_what_was_read_for_a_step_is_given_back(split, tmp_path):
    """Else a rank's memory would grow to the size of its data."""
    shared = Shared(tmp_path, packs=True)
    loader = Loader(Split.open(split.folder), CONFIG, seed=7, pad_id=0, shared=shared)
    loader.at(0)
    loader.split.read(0, 0, 1)
    assert mapped_kib(split.folder) > 0
    loader.at(1)
    assert mapped_kib(split.folder) == mapped_kib(tmp_path) == 0


def test_an_epochs_columns_say_the_same_in_several_ways(split):
    for seq_len in (16, 64):
        epoch = pack_epoch(split, LoaderConfig(seq_len=seq_len, rows_per_step=4), 7, 1)
        pieces = [list(epoch.pieces_of(row)) for row in range(len(epoch.tokens_R))]
        assert epoch.tokens_R.tolist() == [sum(length for *_, length in row) for row in pieces]
        assert epoch.targets_R.tolist() == [sum(length - 1 for *_, length in row) for row in pieces]
        assert epoch.pairs_R.tolist() == [sum(n * (n + 1) // 2 for *_, n in row) for row in pieces]
        assert epoch.slot_start_S1[-1] == len(pieces)


FULL = """
import resource, sys
from pathlib import Path
from logtrain.data.config import LoaderConfig
from logtrain.data.epoch import Epochs, Shared, pack_epoch
from logtrain.data.shards import Split

split = Split.open(sys.argv[1])
epochs = Epochs(lambda number: pack_epoch(split, LoaderConfig(seq_len=64, rows_per_step=4), 7, number),
                Shared(Path(sys.argv[2]), packs=True))
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))  # as a full disk: what is written ends there
try:
    epochs[0]
except ValueError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_that_names_the_folder_and_what_to_do(split, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, split.folder, tmp_path / "node"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == (
        f"{tmp_path / 'node' / 'epoch-0'}: File too large; an epoch's packing takes 0.0 MB there, and two are kept: "
        f"make room, or set TMPDIR to another folder\n"
    )
    assert not list(Path(tmp_path / "node").iterdir())  # what was written makes room
