"""A call that ends in time and within memory, whatever it is given: a regular expression, template or tokenizer that
others wrote may go on for ever, or double a string until the machine stops.

    render = Bounded("the chat template", seconds=10, memory=2 << 30)
    text = render(function, *arguments)

`function` is called in a worker process, which serves any number of calls; it is a function of a module's top level,
and its arguments and what it gives can be pickled. A worker that is stopped is started anew by the next call.
"""

import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from logtrain.core.worker import Worker

T = TypeVar("T")
SECONDS = 10.0
MEMORY = 2 << 30  # bytes
IMPORT_SECONDS = 300.0  # for the modules of the function, on a machine that is busy with other things


class Bounded:
    """Calls functions in a worker process, one at a time."""

    def __init__(self, what: str, seconds: float = SECONDS, memory: int = MEMORY):
        """`what`: is named where a call does not end, as "FILE: the chat template". `seconds`: of a call. `memory`:
        bytes that the process may take.
        """
        self.what, self.seconds, self.memory = what, seconds, memory
        self._worker: Worker | None = None

    def __call__(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function gives for the arguments. Raises the ValueError that it raises, and one of one line where it
        needs more time or memory; RuntimeError for any other of its errors.
        """
        if self._worker is None:
            self._worker = Worker(__name__, memory=self.memory)
        try:
            self._worker.send(function)
            self._worker.receive(IMPORT_SECONDS)
            self._worker.send(arguments)
            value, mistake, error = self._worker.receive(self.seconds)
        except TimeoutError:
            self.close()
            raise ValueError(f"{self.what}: did not end within {self.seconds:g} seconds") from None
        except ValueError as error:
            self.close()
            raise ValueError(f"{self.what}: {error}") from None
        except BaseException:
            self.close()
            raise
        if error:
            raise RuntimeError(error)
        if mistake is not None:
            raise ValueError(mistake)
        return value

    def close(self) -> None:
        """End the worker."""
        if self._worker:
            self._worker.stop()
        self._worker = None


def work(connection: Connection) -> None:
    """What the worker does."""
    while True:
        function = connection.recv()
        connection.send(None)
        arguments = connection.recv()
        value, mistake, error = None, None, ""
        try:
            value = function(*arguments)
        except ValueError as found:
            mistake = str(found)
        except MemoryError:
            raise
        except Exception:
            error = traceback.format_exc()
        connection.send((value, mistake, error))
