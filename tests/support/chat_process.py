"""logtrain.chat as a real process: on a terminal with a person's keys, or in a script's pipe.

What its model says can be laid down and its steps held up, so that a test knows what it interrupts.
"""

import contextlib
import os
import pty
import re
import select
import signal
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Semaphore
from pathlib import Path

import torch

from logtrain import chat
from logtrain.conversation.terminal import Interrupt
from logtrain.core.entry import run
from logtrain.generation.generator import Generator
from logtrain.generation.scheduler import RequestState
from tests.support import without_waits
from tests.support.program import SERVER

ENTER, CTRL_C, CTRL_D, UP = "\r", "\x03", "\x04", "\x1b[A"
PROMPT = ">\x08\x1b[2C"  # as prompt_toolkit draws one with nothing typed
ANSWERING = "\x1b[?2004h"  # the next after a question: an answer begins, and pastes are marked still
NOTED = "<Ctrl-C noted>"  # what the process writes when a Ctrl-C during an answer has reached it
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def pasted(text: str) -> str:
    """What a terminal sends for a text that is pasted."""
    return f"\x1b[200~{text}\x1b[201~"


class Terminal:
    """A pseudo-terminal with `python -m logtrain.chat FLAGS` on its other end. output: all that came, as it came."""

    def __init__(self, flags: Sequence[str], answers: Sequence[str], gate: Semaphore | None, stdout: Path | None):
        self.end, self.other = pty.openpty()  # `other` stays open here: reading fails once nobody has it open
        termios.tcsetwinsize(self.end, (40, 100))
        tty = os.ttyname(self.other)
        self.output, self.seen, self.gate = "", 0, gate
        files = (tty, str(stdout or tty), tty)
        self.process = SERVER.Process(target=become, args=(flags, files, answers, gate), daemon=True)
        self.process.start()

    def send(self, keys: str) -> None:
        os.write(self.end, keys.encode(errors="surrogateescape"))

    def step(self, count: int) -> None:
        """Let the program go on by so many steps of its model."""
        for _ in range(count):
            self.gate.release()

    def until(self, text: str, seconds: float = 30) -> str:
        """Wait for a text after that of the last call; -> what came before it, without codes."""
        deadline = time.monotonic() + seconds
        while (at := self.output.find(text, self.seen)) < 0:
            assert self.read(deadline - time.monotonic()), f"no {text!r} in {self.output[self.seen :]!r}"
        before, self.seen = self.output[self.seen : at], at + len(text)
        return CODES.sub("", before).replace("\r", "")

    def read(self, seconds: float) -> bool:
        """Take what the process writes; -> whether it wrote anything in time."""
        ready = select.select([self.end], [], [], max(0, seconds))[0]
        if ready:
            self.output += os.read(self.end, 1 << 16).decode()
        return bool(ready)

    def status(self) -> int:
        """The exit status, for which this waits until what the process wrote has been read."""
        deadline = time.monotonic() + 30
        while self.process.is_alive():
            assert time.monotonic() < deadline, self.output
            self.read(0.01)
        return self.process.exitcode


@contextlib.contextmanager
def terminal(
    flags: Sequence[str], *, answers: Sequence[str] = (), gate: Semaphore | None = None, stdout: Path | None = None
) -> Iterator[Terminal]:
    """A chat on a terminal, killed at the end. `answers`: what the model says; without any, what it likes. `gate`: the
    model takes a step each time that it is released.
    """
    one = Terminal(flags, answers, gate, stdout)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.join()
        os.close(one.end)
        os.close(one.other)


def script(flags: Sequence[str], stdin: bytes, folder: Path, answers: Sequence[str] = ()) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `... | python -m logtrain.chat FLAGS`."""
    files = [folder / name for name in ("stdin", "stdout", "stderr")]
    for file, text in zip(files, (stdin, b"", b""), strict=True):
        file.write_bytes(text)
    process = SERVER.Process(target=become, args=(flags, list(map(str, files)), answers, None), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode, files[1].read_bytes().decode(), without_waits(files[2].read_bytes().decode())


def become(flags: Sequence[str], files: Sequence[str], answers: Sequence[str], gate: Semaphore | None) -> None:
    """Be the program, with stdin, stdout and stderr at these files."""
    os.setsid()  # so that the terminal, opened next, is the one that sends us a Ctrl-C
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDWR), number)
    sys.stdin = open(0)  # noqa: SIM115
    sys.stdout = open(1, "w")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    os.environ |= {"TERM": "xterm", "COLUMNS": "100", "PROMPT_TOOLKIT_NO_CPR": "1"}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    sys.argv = ["logtrain.chat", *flags]
    lay_down(answers, gate)
    run(chat.main)


def lay_down(answers: Sequence[str], gate: Semaphore | None) -> None:
    """Make the model say these answers, and hold up its steps at the gate."""

    def sample(self: Generator, logits_SV: torch.Tensor, batch: list[RequestState]) -> list[tuple[int, None]]:
        (state,) = batch
        state.changes = state.changes or self.changes(state)
        ids = [*self.tokenizer.encode(answers[state.request.number]), *self.stop_ids]
        return [(ids[len(state.ids) - len(state.request.prompt)], None)]

    def held_step(self: Generator) -> list:
        while not gate.acquire(timeout=0.02):  # without one, a signal just before the call waits for the gate too
            pass
        return step(self)

    def press(self: Interrupt, number: int, frame: object) -> None:
        self.pressed = True
        os.write(1, NOTED.encode())

    step = Generator.step
    Interrupt.press = press
    if answers:
        Generator.sample = sample
    if gate:
        Generator.step = held_step
