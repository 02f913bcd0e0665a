"""A worker process and its pipe.

A worker imports the module that has its work and what that needs, not the program that calls (multiprocessing's spawn
and forkserver import that again, with torch), and inherits no lock that a thread holds, as after a fork. Nobody else
has the ends of its pipe: to the parent a dead worker (out of memory) is an end of file, and so is a dead parent to the
worker. Neither waits for the other in vain. It is in a process group of its own, which Ctrl-C does not reach.
"""

import importlib
import os
import signal
import subprocess
import sys
import traceback
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Worker:
    """The parent's side."""

    def __init__(self, module: str, *arguments: str | int):
        """Runs the module's `work(connection, *arguments)`, the arguments as strings, until it returns or the parent
        has gone."""
        self._connection, theirs = Pipe()
        program = (
            "import sys; sys.path.insert(0, sys.argv[1]); from logtrain.core import worker; worker.run(*sys.argv[2:])"
        )
        command = [sys.executable, "-P", "-c", program, ROOT, theirs.fileno(), module, *arguments]
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], process_group=0
        )
        theirs.close()

    def fileno(self) -> int:
        """What multiprocessing's `wait` waits on: a result, or the end of file of a dead worker."""
        return self._connection.fileno()

    def send(self, work: object) -> None:
        """Raises ValueError where the worker is dead, as `receive` does."""
        try:
            self._connection.send(work)
        except OSError:
            raise self._death() from None

    def receive(self):
        try:
            return self._connection.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            raise self._death() from None

    def stop(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _death(self) -> ValueError:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return ValueError("a worker was killed, most likely for want of memory; try fewer workers")
        return ValueError(f"a worker died with exit code {code}; what it said stands above")


def run(descriptor: str, module: str, *arguments: str) -> None:
    """The worker's side."""
    work = importlib.import_module(module).work
    try:
        work(Connection(int(descriptor)), *arguments)
    except (EOFError, OSError):
        os._exit(0)  # the parent has gone, and nobody wants the rest
    except BaseException:
        traceback.print_exc()
        os._exit(1)
