"""A worker process and its pipe.

A worker imports the module that has its work and what that needs, and nothing of the program that calls. No other
process holds an end of its pipe, so the parent meets a dead worker (out of memory) as an end of file, and the worker a
dead parent; neither waits for the other in vain. A worker is in a process group of its own, which Ctrl-C does not
reach.

No library does that (Python 3.11): multiprocessing's Pool waits for ever for the task of a killed worker, and the
workers of concurrent.futures and of joblib outlive a parent that is killed. The first two also run the calling program
again in each worker, with all that it imports, or copy the locks that its threads hold. All three give a worker one
task at a time, whereas the threads of one of these workers share a tokenizer.
"""

import importlib
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from multiprocessing import Pipe, connection
from pathlib import Path
from typing import Any

from logtrain.core.units import size

ROOT = Path(__file__).parents[2]
NO_MEMORY = 77  # exit status of a worker that needed more memory than it may take
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from logtrain.core import worker; worker.run(*sys.argv[2:])"


class Worker:
    """A worker process as its parent sees it."""

    def __init__(self, module: str, *arguments: str | int, memory: int = 0):
        """Runs the module's `work(connection, *arguments)`, the arguments as strings, until it returns or the parent
        has gone. `memory`: bytes that it may take; 0: any number.
        """
        self._connection, theirs = Pipe()
        self._memory = memory
        with theirs:
            command = [sys.executable, "-P", "-c", PROGRAM, ROOT, theirs.fileno(), memory, module, *arguments]
            self._process = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], process_group=0
            )

    def fileno(self) -> int:
        """The handle to wait on for a result, or for the end of file of a dead worker."""
        return self._connection.fileno()

    def send(self, work: object) -> None:
        """Give the worker any picklable object. Raises ValueError where the worker is dead."""
        try:
            self._connection.send(work)
        except OSError:
            raise self._death() from None

    def receive(self) -> Any:
        """Waits for what the worker sends, and returns it. Raises ValueError where it is dead."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            raise self._death() from None

    def stop(self) -> None:
        """Kill the worker, whatever it is doing."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _death(self) -> ValueError:
        code = self._process.wait()
        if self._memory and code in (NO_MEMORY, -signal.SIGABRT):  # the latter is how libraries in Rust and C++ end
            return ValueError(f"more than {size(self._memory)} of memory were needed; try fewer workers")
        if code == -signal.SIGKILL:
            return ValueError("a worker was killed, most likely for want of memory; try fewer workers")
        return ValueError(f"a worker died with exit code {code}; what it said stands above")


def wait(workers: Sequence[Worker], seconds: float | None = None) -> list[Worker]:
    """Waits until a worker has a result or is dead -> all that have, or are; none after so many seconds."""
    ready = connection.wait([worker.fileno() for worker in workers], seconds)
    return [worker for worker in workers if worker.fileno() in ready]


def run(descriptor: str, memory: str, module: str, *arguments: str) -> None:
    """The worker's side."""
    if int(memory):
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work = importlib.import_module(module).work
    try:
        work(connection.Connection(int(descriptor)), *arguments)
    except (EOFError, OSError):
        os._exit(0)  # the parent has gone, and nobody wants the rest
    except MemoryError:
        os._exit(NO_MEMORY)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
