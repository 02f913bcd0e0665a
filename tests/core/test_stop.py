"""A stop by a signal: it is acknowledged at once, whatever the program is at."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from logtrain.core import stop
from logtrain.core.stop import Stopped, StopSignal, stoppable
from tests.support import ROOT

BUSY = """
import sys, time
from contextlib import nullcontext
import torch
from logtrain.core.stop import stoppable

torch.set_num_threads(1)
def work(stop):
    print("begun", flush=True)
    with stop.promising(lambda: "stopping soon") if sys.argv[1] == "promise" else nullcontext():
        while not (sys.argv[1] == "promise" and stop.asked):
            torch.linalg.svd(torch.randn(700, 700))  # seconds in which Python's own handlers do not run
    return 75
sys.exit(stoppable(work))
"""


@pytest.mark.alone
@pytest.mark.parametrize(("kind", "told"), [("promise", "SIGTERM: stopping soon"), ("none", "SIGTERM: ending; ")])
def test_it_is_told_within_a_call_that_takes_seconds(kind, told):
    command = [sys.executable, "-c", BUSY, kind]
    environment = {**os.environ, "RANK": "0"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as program:
        assert program.stdout.readline() == "begun\n"
        time.sleep(0.3)
        program.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        assert program.stdout.readline().startswith(told)
        assert time.monotonic() - sent < 1
        assert program.wait(90) == 75


def test_without_a_promise_the_work_is_left():
    def work(_stop: StopSignal) -> int:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("still here")

    before = signal.getsignal(signal.SIGTERM)
    assert stoppable(work) == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_that_was_made_of_it_is_a_stop_and_another_stays_one():
    """As PyTorch does, which takes what a sequence raises for a sequence of no shape."""

    def work(_stop: StopSignal) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Stopped:
            raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'") from None
        return 0

    assert stoppable(work) == 75

    def wrong(_stop: StopSignal) -> int:
        raise ValueError("no such file")

    with pytest.raises(ValueError, match="no such file"):
        stoppable(wrong)


def test_a_signal_while_the_handlers_are_set_up_ends_the_work_as_it_begins(monkeypatch, capsys):
    class Early(threading.Thread):
        def start(self) -> None:
            super().start()
            if self.name == "stop signal":
                signal.raise_signal(signal.SIGTERM)

    def work(stop: StopSignal) -> int:
        while not stop.asked:
            time.sleep(0.001)
        with stop.promising(lambda: "soon"):
            raise AssertionError("begun")

    monkeypatch.setattr(stop.threading, "Thread", Early)
    assert stoppable(work) == 75
    assert "SIGTERM: ending" in capsys.readouterr().out


def test_with_a_promise_the_work_ends_itself(capsys):
    def work(stop: StopSignal) -> int:
        with stop.promising(lambda: "soon"):
            signal.raise_signal(signal.SIGINT)
            while not stop.asked:
                time.sleep(0.01)
        with pytest.raises(Stopped), stop.promising(lambda: "never"):
            raise AssertionError("a new piece of work was begun")
        return 7

    assert stoppable(work) == 7
    assert capsys.readouterr().out == "Ctrl-C: soon\n"


def test_what_is_finished_is_not_stopped_any_more(capsys):
    def work(stop: StopSignal) -> int:
        stop.finish()
        signal.raise_signal(signal.SIGTERM)
        while not stop.asked:
            time.sleep(0.01)
        with pytest.raises(Stopped):  # what is finished once a stop has come is not: it might be half done
            stop.finish()
        return 0

    assert stoppable(work) == 0
    assert capsys.readouterr().out == "SIGTERM: all is done but for the end; it is not stopped any more\n"


def test_a_screen_that_fails_does_not_keep_it_from_ending():
    def work(stop: StopSignal) -> int:
        def fail(_text: str) -> None:
            raise OSError("no such terminal")

        stop.say = fail
        signal.raise_signal(signal.SIGTERM)
        return 0

    assert stoppable(work) == 75
