"""Ends a job in which a rank is stopped, stuck or gone within minutes, and reports which rank it is.

A collective that one rank never reaches keeps all others waiting, and none of them knows for whom. So every rank counts
the pieces of work that it completes (`note`), and a thread of it posts that count as a heartbeat in the store through
which the ranks have met. A rank that completes nothing for `timeout` seconds compares the heartbeats of all ranks:

- While any rank completes something, it goes on waiting.
- Otherwise a rank whose heartbeats have ceased is stopped or gone.
- If no rank is silent, the one that has completed the least keeps the rest waiting.
"""

import contextlib
import faulthandler
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch._C import _distributed_c10d as c10d

from logtrain.core import still
from logtrain.core.entry import OTHER_RANKS_WAIT, RANK_LOST
from logtrain.core.run_folder import CONFIG

T = TypeVar("T")
BEATS = 20  # heartbeats of a rank within a timeout
MOST_NAMED = 5  # ranks that an error names
GONE = "does not answer: it is stopped, or its machine is gone"


class Beat(NamedTuple):
    """A heartbeat of a rank."""

    count: int
    """Heartbeats of the rank so far, with this one."""
    done: int
    """Pieces of work that the rank has completed."""
    doing: str
    """The piece of work that is under way, in words."""
    host: str
    """Name of the rank's machine."""


class Watchdog:
    """The watchdog of one rank. Every rank of the process group makes one, and closes it with `close`."""

    latest: "ClassVar[Watchdog | None]" = None
    """The one that was made last in this process."""

    def __init__(self, store: Any, rank: int, size: int, timeout: float, stacks: Path):
        """`store`: in which the ranks have met. `timeout`: seconds without anything done after which the job is ended;
        0: never. `stacks`: the run's folder, for what every rank was at then.
        """
        Watchdog.latest = self
        self.rank, self.size, self.timeout, self.stacks = rank, size, timeout, stacks
        self.count = 0
        self.done, self.doing, self.last = 0, "its start", time.monotonic()
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)
        self.shared: Any = store
        self.store: Any = None
        if self.size > 1 and timeout:
            self.thread.start()

    def note(self, doing: str) -> None:
        """Count a piece of work as completed; `doing` names the next one."""
        self.done, self.doing, self.last = self.done + 1, doing, time.monotonic()
        still.note(doing)

    def close(self) -> None:
        """Stop watching: the work that follows may take any time."""
        self.closing.set()
        if self.thread.is_alive():
            self.thread.join()

    # ---- in the thread

    def watch(self) -> None:
        """Post a heartbeat now and then, and compare those of all ranks when this one is overdue."""
        while not self.closing.wait(self.timeout / BEATS):
            try:
                # A connection of its own, for threads must not wait for each other. A first rank that is stopped just
                # now never answers it: so the thread makes it, and waits for it as for all that comes later.
                self.store = self.store or answered(self.shared.clone, self.timeout / 2)
                answered(self.tell, self.timeout / 2)
                lost = answered(self.lost, self.timeout / 2) if self.is_overdue() else {}
            except RuntimeError:  # no answer from the store, which the launcher keeps, or rank 0 where there is none
                if self.is_overdue() and not self.closing.wait(OTHER_RANKS_WAIT):  # a launcher would end this one
                    self.end_job({0: f"on {os.environ.get('MASTER_ADDR')} or its launcher {GONE}"})
                continue
            if lost and not self.closing.is_set():
                self.end_job(lost)

    def is_overdue(self) -> bool:
        """Whether this rank has completed nothing for longer than the timeout."""
        return time.monotonic() - self.last > self.timeout

    def tell(self) -> None:
        """Post a heartbeat of this rank in the store."""
        self.count += 1
        beat = Beat(self.count, self.done, self.doing, platform.node())
        self.store.set(f"beat/{self.rank}", json.dumps(beat))

    def beats(self) -> dict[int, Beat]:
        """The last heartbeat of each rank that has posted one."""
        keys = {rank: f"beat/{rank}" for rank in range(self.size)}
        return {rank: Beat(*json.loads(self.store.get(key))) for rank, key in keys.items() if self.store.check([key])}

    def lost(self) -> dict[int, str]:
        """The ranks for which the others wait, each with what is known of it; {} while any rank completes something.
        Takes 3 / BEATS of the timeout.
        """
        before = self.beats()
        for _ in range(3):  # a beat may be late on a busy machine
            if self.closing.wait(self.timeout / BEATS):
                return {}
            self.tell()
        after = self.beats()
        if any(rank not in before or beat.done > before[rank].done for rank, beat in after.items()):
            return {}
        silent = [rank for rank in range(self.size) if rank not in after or after[rank].count == before[rank].count]
        if silent:
            return {rank: f"{where(after.get(rank))} {GONE}" for rank in silent}
        least = min(beat.done for beat in after.values())
        behind = {rank: beat for rank, beat in after.items() if beat.done == least}
        return {rank: f"{where(beat)} gets nothing done, at {beat.doing}" for rank, beat in behind.items()}

    def end_job(self, lost: dict[int, str]) -> None:
        """Leave this rank's stacks in a file, let one rank that is there say which is not, and end the process."""
        with contextlib.suppress(RuntimeError):  # the disk does not answer either: the job must end all the same
            answered(self.leave_traces, OTHER_RANKS_WAIT)
        speaker = next((rank for rank in range(self.size) if rank not in lost), 0)
        if self.rank == speaker:
            for rank, told in list(lost.items())[:MOST_NAMED]:
                print(f"error: rank {rank} {told}, for {self.timeout:g} s", file=sys.stderr)
            where_at = f"is in {self.stacks}/stacks-rank-*.txt" if self.has_run() else "stands above"
            print(f"error: the job ends; what each rank was at {where_at}", file=sys.stderr)
            sys.stderr.flush()
        else:
            time.sleep(OTHER_RANKS_WAIT)  # the launcher ends this one once the speaker has ended
        os._exit(RANK_LOST)

    def has_run(self) -> bool:
        """Whether the folder is a run's by now. What is left in it before would stand in the run's way."""
        return (self.stacks / CONFIG).exists()

    def leave_traces(self) -> None:
        """What this rank was at: its stacks, and the flight recorder's last collectives."""
        if not self.has_run():
            faulthandler.dump_traceback()
            return
        with open(self.stacks / f"stacks-rank-{self.rank:05d}.txt", "w") as file:
            faulthandler.dump_traceback(file=file)
        for name, dump in flight_recorders().items():
            (self.stacks / f"{name}-rank-{self.rank:05d}.json").write_bytes(dump())


def flight_recorders() -> dict[str, Callable[[], bytes]]:
    """What dumps the last collectives of each kind of group as JSON: by host ("gloo") and, in a torch for GPUs, by GPU
    ("nccl"). `torch.distributed.flight_recorder.fr_trace` is made to read NCCL's.
    """
    names = {"gloo": "_dump_fr_trace_json", "nccl": "_dump_nccl_trace_json"}
    return {kind: getattr(c10d, name) for kind, name in names.items() if hasattr(c10d, name)}


def answered(call: Callable[[], T], seconds: float) -> T:
    """What a call to the store or the disk gives; RuntimeError where it fails, or gives nothing in time, for some of
    them wait for ever.
    """
    found: list[T] = []
    problems = ["no answer"]

    def ask() -> None:
        try:
            found.append(call())
        except (RuntimeError, OSError) as error:
            problems.append(str(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise RuntimeError(problems[-1])
    return found[0]


def where(beat: Beat | None) -> str:
    """The host of a rank in words, as far as it is known."""
    return f"on {beat.host}" if beat else "on an unknown host"
