"""Ends a job in which a rank is stopped, stuck or gone within minutes, and reports which rank it is.

A collective that one rank never reaches keeps all others waiting, and none of them knows for whom. So every rank counts
the pieces of work that it completes (`note`), and a thread of it posts that count as a heartbeat in the store through
which the ranks have met. A rank that completes nothing for `timeout` seconds compares the heartbeats of all ranks:

- While any rank completes something, it goes on waiting.
- Otherwise a rank whose heartbeats have ceased is stopped or gone.
- If no rank is silent, the one that has completed the least keeps the rest waiting.
"""

import faulthandler
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from logtrain.core.entry import OTHER_RANKS_WAIT, RANK_LOST

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

    def __init__(self, timeout: float, stacks: Path):
        """`timeout`: seconds after which a job in which no rank completes anything is ended; 0 never ends it. `stacks`:
        the folder in which every rank leaves its stack traces then.
        """
        self.rank, self.size, self.timeout, self.stacks = dist.get_rank(), dist.get_world_size(), timeout, stacks
        self.count = 0
        self.done, self.doing, self.last = 0, "starting", time.monotonic()
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)
        if self.size > 1 and timeout:
            self.store = own_store()
            self.thread.start()

    def note(self, doing: str) -> None:
        """Count a piece of work as completed; `doing` names the next one."""
        self.done, self.doing, self.last = self.done + 1, doing, time.monotonic()

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
                answered(self.tell, self.timeout / 2)
                lost = answered(self.lost, self.timeout) if self.is_overdue() else {}
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
        """Write this rank's stack traces to a file, report the lost ranks on one of the others, and end the process
        with RANK_LOST.
        """
        stacks = self.stacks / f"stacks-rank-{self.rank:05d}.txt"
        with open(stacks, "w") as file:
            faulthandler.dump_traceback(file=file)
        speaker = next((rank for rank in range(self.size) if rank not in lost), 0)
        if self.rank == speaker:
            for rank, told in list(lost.items())[:MOST_NAMED]:
                print(f"error: rank {rank} {told}, for {self.timeout:g} s", file=sys.stderr)
            print(f"error: the job ends; what each rank was at is in {self.stacks}/stacks-rank-*.txt", file=sys.stderr)
            sys.stderr.flush()
        else:
            time.sleep(OTHER_RANKS_WAIT)  # the launcher ends this one once the speaker has ended
        os._exit(RANK_LOST)


def answered(call: Callable[[], T], seconds: float) -> T:
    """The result of a call to the store, some of which wait for ever. Raises RuntimeError without one in `seconds`."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise RuntimeError("no answer")
    return found[0]


def own_store() -> Any:
    """A second connection to the store through which the ranks have met: threads must not wait for each other."""
    return _get_default_store().clone()  # pyright: ignore[reportAttributeAccessIssue]  (torch's stubs forget it)


def where(beat: Beat | None) -> str:
    """The host of a rank in words, as far as it is known."""
    return f"on {beat.host}" if beat else "on an unknown host"
