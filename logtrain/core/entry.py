"""How a program of logtrain is called and how it ends: `run(main)` at the end of an entry's file."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from logtrain.core.printable import printable

WRONG_INPUT = 2  # exit status: a mistake of the user's, told in one line
RANK_LOST = 3  # exit status: a rank of the job has stopped; --resume auto goes on
INTERRUPTED = 75  # exit status: stopped on request with everything saved (EX_TEMPFAIL of sysexits.h: try again)
PR_SET_PDEATHSIG = 1  # prctl.h
OTHER_RANKS_WAIT = 5.0  # seconds; a process that held a GPU takes one or two to end
stop_requests: list[int] = []  # signals that have asked this process to save and end


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """What an entry ends with: exits with what `main(argv)` returns, or shows a user's mistake as one line and exits 2.

    Under torchrun every rank meets the same mistake, or loses its connection to the one that met it. Rank 0 speaks at
    once and its exit makes torchrun end the others, which wait for that, and speak only if rank 0 had nothing to say.
    What is no user's mistake may be that lost connection: with it rank 0 waits to be ended, too, but not as long.
    LOGTRAIN_TRACEBACK=1 shows where it came from.
    """
    if "RANK" in os.environ:
        end_with_launcher()
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        rank = os.environ.get("RANK", "0")
        is_users = isinstance(error, ValueError | OSError)  # no space left, permission denied: theirs to mend
        if "RANK" in os.environ and (rank != "0" or not is_users):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun ends us by it, and the trainer's handler would not
            if stop_requests and not is_users:  # it has been sent before the connection was seen to be lost
                what = " ".join(words_of(error).splitlines())[:200]
                print(f"rank {rank}: ended on request, unsaved: {printable(what)}", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(OTHER_RANKS_WAIT if rank != "0" else OTHER_RANKS_WAIT / 2)
        if not is_users or os.environ.get("LOGTRAIN_TRACEBACK"):
            raise
        who = "" if rank == "0" else f"rank {rank}: "
        print(f"{who}error: {printable(' '.join(words_of(error).splitlines()))}", file=sys.stderr, flush=True)
        if "RANK" in os.environ:
            os._exit(WRONG_INPUT)  # at once: an orderly end waits for collectives of ranks that are gone
        sys.exit(WRONG_INPUT)


def words_of(error: Exception) -> str:
    """What a user's mistake is shown as: of the system's errors where they were met, and what it was."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def end_with_launcher() -> None:
    """A rank whose launcher is killed gets SIGTERM: alone it would wait for the others for minutes, or train on."""
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:  # it has ended just now
        os.kill(os.getpid(), signal.SIGTERM)


def program_name() -> str:
    """How the running program was called, for its help: `logtrain cpt`, or `python -m logtrain.cpt`."""
    spec = sys.modules["__main__"].__spec__
    if spec is None or spec.name == "logtrain.__main__":
        return Path(sys.argv[0]).name
    return f"python -m {spec.name}"
