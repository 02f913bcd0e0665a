"""torchrun for jobs that can stop and go on: python launch/torchrun.py ARGUMENTS OF TORCHRUN

It differs in two things. Its exit status is that of the workers (75 stopped on request, 2 wrong input, 128 + n killed
by signal n), where torchrun's is 1 whatever happened, below a page of traceback. And it hands SIGTERM and Ctrl-C to the
workers and waits for as long as they take to save, where torchrun kills them 30 seconds later.
"""

import logging
import os
import platform
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError, RendezvousError
from torch.distributed.run import main

from logtrain.core.entry import INTERRUPTED, LAUNCHER, RANK_LOST, WRONG_INPUT

RESOLVING, STUCK = 30, 20  # seconds


def workers() -> list[int]:
    """Process ids of what torchrun has started so far: the children of this process's one thread that starts any."""
    own = os.getpid()
    return [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]


def forward(number: int, _frame: FrameType | None) -> None:
    pids = workers()
    if not pids:  # still waiting for the other nodes, say
        sys.exit(128 + number)
    for pid in pids:
        os.kill(pid, number)  # who has ended is still there to be asked for its status, so the id is nobody else's


def exit_status(codes: list[int]) -> int:
    """One status for all from those of the workers that did not end with 0, in order of time; -n: killed by signal n.

    When one has ended, torchrun ends the others by SIGTERM, so that says nothing as long as there is anything else.
    """
    told = [code for code in codes if code != -signal.SIGTERM] or codes
    first = next((code for code in told if code != INTERRUPTED), INTERRUPTED)
    return first if first > 0 else 128 - first


def ended_workers() -> list[int]:
    """Exit statuses of the workers, if all have ended and torchrun has not asked yet; -n: killed by signal n."""
    found = []
    for pid in workers():
        try:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:  # torchrun has asked just now
            return []
        if ended is None:
            return []
        found.append(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)
    return found


def end_with_workers() -> None:
    """In a thread: end this process when its workers have, and torchrun does not see it: it asks the store of the
    rendezvous, whose machine may be gone, before it looks at them, and waits for an answer for ever.
    """
    since = time.monotonic()
    while time.monotonic() - since < STUCK:
        time.sleep(0.5)
        codes = ended_workers()
        since = since if codes else time.monotonic()
    print("torchrun: the store of the rendezvous does not answer; ending as the workers did", file=sys.stderr)
    sys.stderr.flush()
    os._exit(exit_status([code for code in codes if code]) if any(codes) else 0)


def resolves(name: str) -> bool:
    """Whether a machine's name has an address, now or within half a minute: that of a pod comes when it has started."""
    for left in reversed(range(RESOLVING)):
        try:
            socket.getaddrinfo(name or "localhost", None)
            return True
        except OSError:
            time.sleep(1 if left else 0)
    return False


def run(arguments: list[str]) -> int:
    # torchrun's own account of failed workers; they have spoken for themselves.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    threading.Thread(target=end_with_workers, daemon=True).start()
    meeting_point = os.environ.get("PET_RDZV_ENDPOINT", "")
    if not resolves(meeting_point.rpartition(":")[0] or meeting_point):
        told = f"error: PET_RDZV_ENDPOINT = {meeting_point}: {platform.node()} knows no machine of that name"
        print(f"{told}; give its address, or enter it in /etc/hosts", file=sys.stderr)
        return WRONG_INPUT
    try:
        os.environ[LAUNCHER] = str(os.getpid())  # a worker that starts when this has been killed knows it by that
        main(["--signals-to-handle", "SIGHUP,SIGQUIT", *arguments])
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        for rank, failure in failures:
            if failure.exitcode not in (-signal.SIGTERM, INTERRUPTED) and failure.exitcode < 0:
                print(f"torchrun: rank {rank} was killed by {failure.signal_name()}", file=sys.stderr)
        return exit_status([failure.exitcode for _, failure in failures])
    except RendezvousError as error:
        is_gone = isinstance(error, RendezvousConnectionError)
        what = "its machine or its launcher is gone" if is_gone else str(error) or "another machine has ended it"
        print(f"error: {platform.node()}: no meeting of all machines at {meeting_point}: {what}", file=sys.stderr)
        return RANK_LOST
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
