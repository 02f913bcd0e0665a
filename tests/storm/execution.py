"""A command as a process of its own, watched: its exit status, what it said, how long it took and its peak memory."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.program import SERVER, Program

PATIENCE = 60.0  # seconds for a command that takes one or two
SERVER.set_forkserver_preload(
    [
        *("logtrain.prepare", "logtrain.cpt", "logtrain.sft", "logtrain.merge", "logtrain.export", "logtrain.evaluate"),
        *("logtrain.training.run", "logtrain.training.publish", "logtrain.model.merging", "logtrain.generation.load"),
        *("logtrain.dpo", "logtrain.replay", "logtrain.blend", "logtrain.judge", "logtrain.benchmark", "logtrain.hub"),
        *("logtrain.review", "logtrain.report", "logtrain.status", "logtrain.trace", "logtrain.lineage"),
        *("logtrain.training.reference", "logtrain.generation.replay_rounds", "logtrain.training.blending"),
        *("logtrain.evaluation.judged_run", "logtrain.evaluation.suite", "logtrain.observe.page", "pyarrow.parquet"),
        *("logtrain.training.rerun", "logtrain.serving.decisions", "logtrain.serving.reviewed_file"),
        *("logtrain.evaluation.run", "logtrain.evaluation.answering", "logtrain.evaluation.page"),
    ]
)


class Ended(NamedTuple):
    """How a command ended."""

    statuses: list[int]
    """exit status of every rank; -n: ended by signal n"""
    said: str
    seconds: float
    peak_gib: float

    @property
    def is_done(self) -> bool:
        return set(self.statuses) == {0}

    @property
    def errors(self) -> list[str]:
        """The lines in which it refused."""
        return [line for line in self.said.splitlines() if line.startswith("error: ") or ": error: " in line[:20]]


class Execution:
    """A command under way."""

    def __init__(self, entry: str, flags: Sequence[str], output: Path, *, ranks: int = 1):
        self.began, self.peak, self.output = time.monotonic(), 0, output
        self.program = Program(flags, output, ranks=ranks, entry=entry)

    @property
    def is_running(self) -> bool:
        return any(process.exitcode is None for process in self.program.processes)

    def look(self) -> None:
        """Note the memory that the processes have taken by now."""
        for process in self.program.processes:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                continue
            for line in status.splitlines():
                if line.startswith("VmHWM:"):
                    self.peak = max(self.peak, int(line.split()[1]))

    def send(self, number: signal.Signals, rank: int | None = None) -> None:
        self.program.send(number, rank)

    def end(self, patience: float = PATIENCE) -> Ended:
        """Wait for the end; what is not there by then is killed, and its status is that of SIGKILL. As a launcher does,
        end the others once a rank has failed.
        """
        is_ending = False
        while self.is_running and time.monotonic() - self.began < patience:
            self.look()
            if not is_ending and any(process.exitcode for process in self.program.processes):
                is_ending = True
                self.send(signal.SIGTERM)
            time.sleep(0.005)
        seconds = time.monotonic() - self.began
        self.send(signal.SIGKILL)
        for process in self.program.processes:
            process.join()
        statuses = [process.exitcode for process in self.program.processes]
        said = self.output.read_bytes().decode(errors="backslashreplace")
        return Ended(statuses, said, seconds, self.peak / 2**20)


def execute(entry: str, flags: Sequence[str], output: Path, *, ranks: int = 1, patience: float = PATIENCE) -> Ended:
    """Run a command to its end."""
    return Execution(entry, flags, output, ranks=ranks).end(patience)
