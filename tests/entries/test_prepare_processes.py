"""prepare with its worker processes: the same bytes however many there are, and nothing half done however it ends."""

import os
import random
import re
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from logtrain import prepare
from logtrain.data import chunks, pool
from logtrain.data.encode import TextEncoder
from logtrain.data.pool import Pool
from logtrain.data.shards import Split
from logtrain.text.tokenizer import Tokenizer
from tests.support import without_waits
from tests.support.harmful_encoder import Hostile
from tests.support.preparing import (
    BOS,
    END,
    arguments,
    contents,
    dump,
    is_running,
    make_rows,
    start,
    wait_until,
    workers_of,
)

pytestmark = pytest.mark.slow


def test_the_pool_keeps_order_and_content(bytes_tokenizer):
    encoder = TextEncoder(bos_id=BOS, document_end_id=END, hash_key=b"1309")
    random_ = random.Random(0)
    sent = [(n, [f"{n} " + "x" * random_.choice([0, 10, 300_000]) for _ in range(n % 4)]) for n in range(25)]
    expected = [encoder.encode(texts, Tokenizer.load(bytes_tokenizer)) for _, texts in sent]
    for num_workers, num_threads in ((1, 1), (1, 4), (3, 2)):
        with Pool(str(bytes_tokenizer), num_workers, num_threads) as pool:
            found = list(pool.encode(iter(sent), encoder))
        assert [tag for tag, _ in found] == list(range(25))
        for (_, encoded), same in zip(found, expected, strict=True):
            assert (encoded.problems, encoded.lost) == (same.problems, same.lost)
            arrays = zip(encoded[:-2], same[:-2], strict=True)
            assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in arrays)


def test_bytes_do_not_depend_on_the_number_of_workers(bytes_tokenizer, tmp_path, inline, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_CHARS", 500)
    path = dump(tmp_path / "a.json", make_rows(300))
    prepare.main(arguments(bytes_tokenizer, tmp_path / "here", path, shard_tokens=5000))
    monkeypatch.setattr(prepare, "Pool", Pool)
    for workers in (1, 3):
        prepare.main(arguments(bytes_tokenizer, tmp_path / str(workers), path, shard_tokens=5000, workers=workers))
        assert contents(tmp_path / str(workers)) == contents(tmp_path / "here")
    assert len(contents(tmp_path / "here")) > 12


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("loop", "chunk 2: the tokenizer or the chat template did not end within 1 seconds"),
        ("double", "more than 1 GB of memory were needed; try fewer workers"),
        ("fails", "chunk 2: the tokenizer fails (the regular expression fails)"),
    ],
)
def test_work_that_does_not_end_is_ended(bytes_tokenizer, monkeypatch, does, message):
    monkeypatch.setattr(pool, "SECONDS", 1.0 if does == "loop" else 60.0)  # so that it is what ends this one alone
    monkeypatch.setattr(pool, "MEMORY_SHARE", 1e9 / os.sysconf("SC_PHYS_PAGES") / os.sysconf("SC_PAGE_SIZE"))
    sent = [(n, ["go" if n == 2 else "come"]) for n in range(9)]
    found = []
    with Pool(str(bytes_tokenizer), 1, 2) as workers, pytest.raises(ValueError, match=re.escape(message)) as error:
        for tag, _ in workers.encode(iter(sent), Hostile(does), "chunk {}".format):
            found.append(tag)
    assert found in ([], [0], [0, 1])
    assert len(str(error.value).splitlines()) == 1


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Enough for a second or two."""
    return dump(tmp_path_factory.mktemp("large") / "a.json", make_rows(12_000))


def test_killed_at_any_time(bytes_tokenizer, tmp_path, large, inline):
    argv = arguments(bytes_tokenizer, tmp_path / "out", large, workers=2)
    for num_bytes in (-1, 0, 1 << 19, 1 << 20):  # as soon as it has written more than that
        process = start(argv)
        workers = workers_of(process, at_least=2)
        assert wait_until(lambda: num_bytes < sum(f.stat().st_size for f in tmp_path.glob(".out.partial/*.npy")))  # noqa: B023
        assert process.poll() is None, "the input is too small for this test"
        process.kill()
        process.communicate()
        assert not (tmp_path / "out").exists()
        assert wait_until(lambda: not any(map(is_running, workers))), "workers outlive their parent"  # noqa: B023
    assert (tmp_path / ".out.partial").exists()
    process = start(argv)
    assert process.communicate()[0].count("already prepared") == 0
    assert process.returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "clean", large))
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


@pytest.mark.parametrize(
    ("victim", "signal_", "code", "message"),
    [
        (
            "worker",
            signal.SIGKILL,
            2,
            "error: a worker was killed, most likely for want of memory; try fewer workers\n",
        ),
        ("group", signal.SIGINT, 130, ""),
    ],
)
def test_an_end_that_it_sees_coming_leaves_nothing(
    bytes_tokenizer, tmp_path, tmp_path_factory, victim, signal_, code, message
):
    # So long that on a busy machine too the signal comes before its end.
    long = dump(tmp_path_factory.mktemp("long") / "a.json", make_rows(12_000) * 5)
    process = start(arguments(bytes_tokenizer, tmp_path / "out", long, workers=2))
    workers = workers_of(process, at_least=2)
    assert wait_until(lambda: list(tmp_path.glob(".out.partial/*.npy")))
    if victim == "worker":
        os.kill(workers[1], signal_)
    else:
        os.killpg(process.pid, signal_)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, without_waits(errors)) == (code, message)
    assert list(tmp_path.iterdir()) == []
    assert not any(map(is_running, workers))


def test_no_space_left(bytes_tokenizer, tmp_path, large):
    process = start(
        arguments(bytes_tokenizer, tmp_path / "out", large),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),  # stands in for a full disk
    )
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors == f"error: {tmp_path}/out: File too large; nothing was left behind\n"
    assert list(tmp_path.iterdir()) == []


def test_two_at_once(bytes_tokenizer, tmp_path, large, inline):
    process = start(arguments(bytes_tokenizer, tmp_path / "out", large))
    assert wait_until(lambda: list(tmp_path.glob(".out.partial/*.npy")))
    with pytest.raises(ValueError, match="out: another process is writing it"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", large))
    process.communicate()
    assert process.returncode == 0
    assert Split.open(tmp_path / "out").lengths.sum() > 100_000


def test_command_line(bytes_tokenizer, tmp_path):
    path = dump(tmp_path / "a.json", [{"text": "a"}, {"text": ""}])
    process = start(arguments(bytes_tokenizer, tmp_path / "out", path))
    _, errors = process.communicate()
    assert process.returncode == 2
    assert re.fullmatch(r'error: 1 bad row .*a\.json row 1: "text" is empty\. .*\n', errors)
