"""Worker processes change nothing of scores but the time."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from logtrain.evaluation import scoring
from logtrain.evaluation.scoring import score, score_all
from tests.support.scored_texts import SPECIAL, WORDS


def many(number: int, num_words: int = 40) -> list[tuple[str, str]]:
    generator = random.Random(number)
    texts = (" ".join(generator.choices([*WORDS, "\n"], k=num_words)) for _ in itertools.count())
    return list(itertools.islice(zip(texts, texts, strict=False), number))


@pytest.fixture
def workers_pay(monkeypatch):
    """Few pairs are enough for workers."""
    monkeypatch.setattr(scoring, "CHARACTERS_PER_WORKER", 1)


@pytest.fixture
def watched(monkeypatch):
    """Every worker that is started, once the first result is there: its process id and what it has mapped."""
    seen = []

    def wait(busy):
        ready = real(busy)
        for worker in ready:
            process = worker._process.pid
            seen.append((process, Path(f"/proc/{process}/maps").read_text()))
        return ready

    real = scoring.wait
    monkeypatch.setattr(scoring, "wait", wait)
    return seen


def test_workers_change_nothing(workers_pay, watched):
    pairs = [*many(131), *itertools.product(SPECIAL[:25], repeat=2)]
    expected = [score(*pair) for pair in pairs]
    assert score_all(pairs, num_workers=1) == expected
    assert watched == []
    for workers in (2, 3):
        assert score_all(pairs, workers) == expected
    assert len({process for process, _ in watched}) == 5
    assert not any(Path(f"/proc/{process}").exists() for process, _ in watched)


def test_workers_are_light(workers_pay, watched):
    """They hold what scores need, and nothing of the program that calls: here pytest, torch and numpy."""
    score_all(many(40), num_workers=2)
    assert len(watched) == 5
    for _, maps in watched:
        assert "rapidfuzz" in maps
        assert "libtorch" not in maps and "numpy" not in maps


def test_the_calling_program_is_not_run_again(tmp_path):
    """As spawn and forkserver would, where it has no guard."""
    program = tmp_path / "main.py"
    program.write_text(
        "from logtrain.evaluation import scoring\n"
        "print('once')\n"
        "scoring.CHARACTERS_PER_WORKER = 1\n"
        "print(len(scoring.score_all([('a b c', 'a b')] * 50, num_workers=2)))\n"
    )
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("once\n50\n", "")


def test_few_pairs_need_no_process(watched):
    pairs = many(100)
    assert score_all(pairs, num_workers=8) == [score(*pair) for pair in pairs]
    assert score_all([], num_workers=8) == []
    assert watched == []


def test_a_worker_that_is_killed(workers_pay, monkeypatch):
    started = []

    def wait(busy):
        started.extend(worker._process for worker in busy if worker._process not in started)
        os.kill(started[1].pid, signal.SIGKILL)
        return real(busy)

    real = scoring.wait
    monkeypatch.setattr(scoring, "wait", wait)
    with pytest.raises(ValueError, match="killed, most likely for want of memory; try fewer workers"):
        score_all(many(2000), num_workers=2)
    assert all(process.returncode == -signal.SIGKILL for process in started)  # the other has been stopped


def test_a_worker_that_fails(workers_pay, capfd):
    """A mistake of ours: the worker's traceback, and one line."""
    with pytest.raises(ValueError, match="a worker died with exit code 1; what it said stands above"):
        score_all([*many(20), (b"bytes", "text")], num_workers=2)
    assert "TypeError" in capfd.readouterr().err


def test_ctrl_c(tmp_path):
    """Sent to the group, it reaches the parent alone, which ends the workers. One that is killed they miss too."""
    program = (
        "import sys; from logtrain.evaluation import scoring; pairs = [('a b c ' * 400, 'a b ' * 400)] * 20_000; "
        "print('begins', flush=True); scoring.score_all(pairs, num_workers=2)"
    )
    for number in (signal.SIGINT, signal.SIGKILL):
        command = [sys.executable, "-c", program]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout.readline() == "begins\n"
        worker = b"logtrain.evaluation.scoring"
        workers = until(lambda: children(process.pid, worker), lambda found: len(found) == 2)  # noqa: B023
        os.killpg(process.pid, number)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == -number
        assert errors.count("Traceback") == (number == signal.SIGINT), errors
        until(lambda: [worker for worker in workers if is_running(worker)], lambda left: not left)  # noqa: B023


def children(process: int, of_command: bytes) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found if of_command in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(what, holds):
    for _ in range(6000):
        if holds(found := what()):
            return found
        time.sleep(0.005)
    raise AssertionError(f"still {found}")


def test_speed():
    """500 answers of 600 tokens in 10 s on 2 cores, the start of the workers included: it takes about 2 s there."""
    pairs = many(500, num_words=600)
    seconds = []
    for _ in range(3):  # what else the machine is doing may be in the way
        begin = time.perf_counter()
        score_all(pairs, num_workers=2)
        seconds.append(time.perf_counter() - begin)
        if seconds[-1] < 10:
            return
    raise AssertionError(f"took {seconds} s")
