"""A stop by SIGTERM or Ctrl-C. A thread acknowledges the signal at once, whatever the program is at; the program ends
where it can, which it says by a promise.

    no promise      nothing is lost (the start, an export): the main thread leaves what it is at by the exception
                    Stopped, or the process is ended GRACE seconds later if that waits for something
    with a promise  the main thread asks (`asked`) between two pieces of work, and saves
    finishing       the result gets its name next: it is too late for a stop, and the program ends as if none had come
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from logtrain.core.entry import BY_CTRL_C, INTERRUPTED, stop_requests

GRACE = 2.0  # seconds; a collective of a rank that is gone may keep the main thread waiting for ever
LAUNCHERS = 1.0  # seconds in which a second Ctrl-C is the launcher's: torchrun hands on what the terminal has sent too


class Stopped(BaseException):
    """The program ends on request, and there is nothing to save."""


def say_on_main(text: str) -> None:
    """Print a line, on rank 0 alone."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


class StopSignal:
    """The signals of this process, from here to `close`. One is made at a time, in the main thread."""

    def __init__(self):
        self.number, self.first = 0, 0.0
        self.promise: Callable[[], str] | None = None
        self.say: Callable[[str], None] = say_on_main
        self.has_raised = False  # Stopped, in the main thread
        self.is_raised = True  # not before all of this is there: a signal until then ends the work as it begins
        self.ours, theirs = os.pipe()
        os.set_blocking(theirs, False)
        self.wakeup = theirs, signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        self.before = {number: signal.signal(number, self.on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.listen, name="stop signal", daemon=True)
        self.thread.start()
        self.is_raised = False

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return bool(self.number)

    @contextlib.contextmanager
    def promising(self, promise: Callable[[], str]) -> Iterator[None]:
        """Let the block end itself when a stop is asked for. `promise`: says what it will do then. Raises Stopped where
        one was asked for before.
        """
        self.end_if_asked()
        self.promise = promise
        try:
            yield
        finally:
            self.promise = None

    def finish(self) -> None:
        """Let no stop from here on end the work, whose result is complete. Raises Stopped where one came before."""
        self.end_if_asked()
        self.promise = lambda: "all is done but for the end; it is not stopped any more"

    def end_if_asked(self) -> None:
        """Raises Stopped if a stop was asked for."""
        if self.asked:
            raise Stopped

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """In the main thread, when it comes to it: leave what is under way, unless something was promised."""
        if self.promise is None and not self.is_raised:
            self.is_raised = self.has_raised = True
            raise Stopped

    # ---- in the thread

    def listen(self) -> None:
        """Acknowledge every signal, of which the interpreter writes the number into the pipe."""
        while number := os.read(self.ours, 1)[0]:
            if not self.asked:
                self.number, self.first = number, time.monotonic()
                stop_requests.append(number)
                promise = self.promise
                what = promise() if promise else "ending; what was saved stays, --resume auto goes on"
                with contextlib.suppress(Exception):  # a screen that fails must not keep the process from ending
                    self.say(f"{name_of(number)}: {what}")
                threading.Thread(target=self.end_without_promise, daemon=True).start()
            elif number == signal.SIGINT and time.monotonic() - self.first > LAUNCHERS:
                os._exit(BY_CTRL_C)  # an exception would wait for the save under way

    def end_without_promise(self) -> None:
        """End the process where the main thread neither does nor has promised to."""
        while not self.closing.wait(GRACE):
            if self.promise is None:
                sys.stdout.flush()
                os._exit(INTERRUPTED)

    def close(self) -> None:
        """Acknowledge what has come, and restore the handlers that the signals had before."""
        self.is_raised = True
        self.closing.set()
        theirs, before = self.wakeup
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.set_blocking(theirs, True)
        os.write(theirs, b"\0")
        self.thread.join()
        os.close(theirs)
        os.close(self.ours)


def name_of(number: int) -> str:
    """A signal as users call it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def stoppable(work: Callable[[StopSignal], int]) -> int:
    """The exit status that `work` returns, or INTERRUPTED where a stop was asked for and nothing had to be saved."""
    stop = StopSignal()
    try:
        try:
            return work(stop)
        finally:
            stop.close()
    except Stopped:  # also at the last moment before `close`
        return INTERRUPTED
    except Exception:
        if stop.has_raised:  # within a function in C that made an error of its own of it, as torch.asarray does
            return INTERRUPTED
        raise
