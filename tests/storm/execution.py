"""A command as a process of its own, watched: its exit status, what it said, how long it took and its peak memory."""

import os
import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.program import SERVER, Program

PATIENCE = 60.0  # seconds for a command that takes one or two
CORES, TICKS = len(os.sched_getaffinity(0)), os.sysconf("SC_CLK_TCK")
ALL: dict[str, float] = defaultdict(float)
"""Of all commands: their number, the seconds that they took, in how many of these they waited for a processor, the
longest without these, and the most memory of one, in GiB."""
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
    """from its start to its end, less those in which it could have gone on but no processor was free"""
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
        self.waited, self.looked = 0.0, 0.0
        self.program = Program(flags, output, ranks=ranks, entry=entry)

    @property
    def is_running(self) -> bool:
        return any(process.exitcode is None for process in self.program.processes)

    @property
    def seconds(self) -> float:
        """The seconds until now that count. What hangs waits for something else than a processor, or has one: on a busy
        machine it is found as surely as on an idle one, only later.
        """
        return time.monotonic() - self.began - self.waited

    def look(self) -> None:
        """Note the memory that the processes have taken by now and, five times a second, how long they have waited."""
        if time.monotonic() - self.looked > 0.2:
            self.looked = time.monotonic()
            self.waited = max(self.waited, *(waited(process.pid) for process in self.program.processes))
            used = sum(used_by(process.pid) for process in self.program.processes)
            # Threads of a command that wait for one another's processor wait for the command itself.
            self.waited = min(self.waited, max(0.0, time.monotonic() - self.began - used / CORES))
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
        while self.is_running and self.seconds < patience:
            self.look()
            if not is_ending and any(process.exitcode for process in self.program.processes):
                is_ending = True
                self.send(signal.SIGTERM)
            time.sleep(0.005)
        seconds = self.seconds
        self.send(signal.SIGKILL)
        for process in self.program.processes:
            process.join()
        statuses = [process.exitcode for process in self.program.processes]
        said = self.output.read_bytes().decode(errors="backslashreplace")
        for name, value in (("commands", 1), ("seconds", time.monotonic() - self.began), ("waited", self.waited)):
            ALL[name] += value
        ALL["longest"], ALL["peak"] = max(ALL["longest"], seconds), max(ALL["peak"], self.peak / 2**20)
        return Ended(statuses, said, seconds, self.peak / 2**20)


def used_by(pid: int | None) -> float:
    """The seconds of processors that a process, and those that it has started, have used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS + sum(used_by(int(child)) for child in children)


def waited(pid: int | None) -> float:
    """The seconds for which that thread of a process, or of one that it has started, that waited longest could have
    gone on but had no processor.
    """
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        longest = max(int((task / "schedstat").read_text().split()[1]) for task in tasks) / 1e9
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except (OSError, ValueError, IndexError):  # it has just ended
        return 0.0
    return max([longest, *(waited(int(child)) for child in children)])


def execute(entry: str, flags: Sequence[str], output: Path, *, ranks: int = 1, patience: float = PATIENCE) -> Ended:
    """Run a command to its end."""
    return Execution(entry, flags, output, ranks=ranks).end(patience)
