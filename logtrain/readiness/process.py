"""A run in a process of its own, which can be killed: as a machine's failure would, by SIGKILL."""

import contextlib
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from logtrain.core.entry import WRONG_INPUT, words_of
from logtrain.core.stop import Stopped, StopSignal
from logtrain.core.world import World
from logtrain.observe.records import step_of
from logtrain.readiness.stages import gathered
from logtrain.training.config import RunConfig

Work = Callable[[RunConfig, StopSignal], int]
CONTEXT = multiprocessing.get_context("forkserver")  # forked from a clean process: this one has threads, gloo, files
LOOK = 0.05  # seconds between two looks at the processes
LATECOMERS = 3.0  # seconds in which another rank may say why one lost its connection
UNSAVED = 5.0  # seconds in which a run is held without a checkpoint; one that takes longer is written all the same
MOST_SHOWN = 100  # characters of a line
TAIL = 1 << 12  # bytes of a process's output that are read for its last line


class Ended(NamedTuple):
    """How a process has ended."""

    status: int
    """Its exit status; -n: by signal n."""
    words: str
    """What was wrong, "" where nothing was."""


class HoldingStop(StopSignal):
    """A stop signal that lets a run go no further once a step of it is recorded, so that it is killed there. Where the
    checkpoint of that step is not written meanwhile, as on a full disk, the run goes on and says so.
    """

    def __init__(self, run: Path, step: int):
        """`run`: its folder."""
        self.run, self.step, self.since = run, step, 0.0
        super().__init__()

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for. It does not return while the run is held."""
        while not self.number and has_record(self.run / "metrics.jsonl", self.step):
            self.since = self.since or time.monotonic()
            if time.monotonic() - self.since > UNSAVED and not checkpoint_of(self.run, self.step).exists():
                break
            time.sleep(LOOK)
        return bool(self.number)


class Trial:
    """A run that goes on in another process of this rank."""

    def __init__(self, config: RunConfig, output: Path, environment: dict[str, str], work: Work, hold_at: int):
        """`output`: a file for what it prints. `work`: what trains. `hold_at`: the step after which it goes no further;
        0: none.
        """
        CONTEXT.set_forkserver_preload(["logtrain.training.run"])
        self.output = output
        self.pipe, theirs = CONTEXT.Pipe(duplex=False)
        arguments = (config, output, environment, work, hold_at, theirs)
        self.process = CONTEXT.Process(target=become, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def ended(self) -> Ended | None:
        """How it has ended; None while it goes on."""
        if self.process.is_alive():
            return None
        status = self.process.exitcode
        assert status is not None
        words = ""
        with contextlib.suppress(EOFError):  # it was killed
            words = self.pipe.recv()
        if status < 0:
            name = signal.Signals(-status).name
            killed = " (the system kills so when memory runs out: see dmesg)" if name == "SIGKILL" else ""
            words = f"the process was ended by {name}{killed}"
        elif status and not words:
            words = last_line(self.output) or f"the process has ended with status {status}"
        return Ended(status, words)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.join()

    def last_line(self) -> str:
        """The last line that it has printed so far."""
        return last_line(self.output)


def become(
    config: RunConfig, output: Path, environment: dict[str, str], work: Work, hold_at: int, pipe: Connection
) -> None:
    """Do the work in this process, say in the pipe what was wrong, and end it with the exit status."""
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(file, number)
    threading.Thread(target=end_with_parent, daemon=True).start()
    stop = HoldingStop(Path(config.runs) / config.name, hold_at) if hold_at else StopSignal()
    try:
        status, words = work(config, stop), ""
    except (ValueError, OSError) as error:
        status, words = WRONG_INPUT, words_of(error)
    except (Exception, Stopped) as error:
        traceback.print_exc()
        status, words = 1, f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError):  # it says nothing
            words = "out of memory at the start; give this machine or container more, or raise `ulimit -v`"
    with contextlib.suppress(OSError):
        pipe.send(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # at once: an orderly end would wait for collectives of ranks that are gone


def end_with_parent() -> None:
    """End this process when the one that started it does."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def has_record(records: Path, step: int) -> bool:
    """Whether the records of a run have one of this step, or a later one."""
    with contextlib.suppress(OSError):
        return any((step_of(line) or 0) >= step for line in records.read_bytes().splitlines(keepends=True))
    return False


def checkpoint_of(run: Path, step: int) -> Path:
    """The folder of the complete checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:06d}"


def last_line(file: Path) -> str:
    """The beginning of the last line of a text file that says anything, without the seconds that `Still` adds."""
    with contextlib.suppress(OSError), open(file, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL))
        lines = [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
        return re.sub(r": \d+ s$", "", lines[-1].strip())[:MOST_SHOWN] if lines else ""
    return ""


def environment_of(world: World) -> dict[str, str]:
    """The environment of the processes of all ranks, which meet at a port of their own. Every rank calls this."""
    if "RANK" not in os.environ:
        return dict(os.environ)
    port = world.from_main(free_port() if world.is_main else None)
    return {**os.environ, "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def until(world: World, trial: Trial, doing: str, is_there: Callable[[], bool]) -> None:
    """Wait until `is_there` on rank 0, or, where it never is, until the processes of all ranks have ended well. Every
    rank calls this. Raises ValueError, on all ranks, where a process has ended otherwise.
    """
    failed_at = None
    while True:
        line = trial.last_line()
        world.note(f"{doing}{', ' * bool(line)}{line}")
        every: list[tuple[Ended | None, bool]] = gathered(world, (trial.ended(), world.is_main and is_there()))
        ends = [(rank, end) for rank, (end, _) in enumerate(every) if end]
        wrong = [(rank, end) for rank, end in ends if end.status]
        if wrong and failed_at is None:
            failed_at = time.monotonic()
        users = [(rank, end) for rank, end in wrong if end.status == WRONG_INPUT]
        is_late = world.from_main(failed_at is not None and time.monotonic() - failed_at > LATECOMERS)
        if wrong and (users or is_late or len(ends) == world.size):
            rank, end = (users or wrong)[0]
            raise ValueError(f"rank {rank}: {end.words}" if rank else end.words)
        if every[0][1] or len(ends) == world.size:
            return
        time.sleep(LOOK)
