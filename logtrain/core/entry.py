"""How a program of logtrain is called and how it ends: `run(main)` at the end of an entry's file."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from logtrain.core.location import told
from logtrain.core.mirror import close_all
from logtrain.core.printable import printable

# The exit statuses of a program of logtrain, beside 0 (done) and 1 (a mistake of ours, with a traceback).
WRONG_INPUT = 2  # The user's input is wrong, as one line says, or the system refused something (a full disk).
RANK_LOST = 3  # A rank of the job was stopped or stuck for parallel.timeout; --resume auto goes on.
INTERRUPTED = 75  # The run was stopped on request and is saved; --resume auto goes on (EX_TEMPFAIL of sysexits.h).
BY_CTRL_C = 128 + signal.SIGINT  # Ctrl-C ended the program before it could save.
PR_SET_PDEATHSIG = 1  # prctl.h
LAUNCHER = "LOGTRAIN_LAUNCHER"  # environment variable: the process id of launch/torchrun.py
OTHER_RANKS_WAIT = 5.0  # seconds; a process that held a GPU takes one or two to end
stop_requests: list[int] = []  # signals that have asked this process to save and end
is_program = False  # whether this process is a program of logtrain, and not one that imports it


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run an entry's `main(argv)` and exit with the status that it returns (None is 0). A user's mistake, which is a
    ValueError or an OSError, is shown as one line, and the status is WRONG_INPUT; LOGTRAIN_TRACEBACK=1 shows its
    traceback too.

    Under torchrun every rank meets the same mistake, or loses its connection to a rank that met it. Rank 0 reports a
    mistake at once, and its exit makes torchrun end the other ranks. These wait to be ended, and report only if rank 0
    had nothing to report. Any other exception on rank 0 may be a lost connection, so rank 0 waits to be ended as well,
    but half as long.
    """
    global is_program
    is_program = True
    if "RANK" in os.environ:
        end_with_launcher()
    try:
        status = main(sys.argv[1:])
        close_all()
        sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(BY_CTRL_C)
    except Exception as error:
        rank = os.environ.get("RANK", "0")
        is_users = isinstance(error, ValueError | OSError)  # OSError: no space left, permission denied
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
        print(f"{who}error: {printable(' '.join(told(words_of(error)).splitlines()))}", file=sys.stderr, flush=True)
        if "RANK" in os.environ:
            os._exit(WRONG_INPUT)  # at once: an orderly end waits for collectives of ranks that are gone
        sys.exit(WRONG_INPUT)


def seconds_running() -> float:
    """Seconds since this process was started, by the kernel's clock, if it is a program of logtrain; else 0."""
    if not is_program or not sys.platform.startswith("linux"):
        return 0.0
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), starttime
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)


def words_of(error: Exception) -> str:
    """The text of a user's mistake; of an OSError the file, if it is known, and the system's reason."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def end_with_launcher() -> None:
    """Let this rank get SIGTERM when its launcher is killed: alone it would wait for the others for minutes, or train
    on.
    """
    launcher = int(os.environ.get(LAUNCHER) or os.getppid())
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher and not os.path.exists(f"/proc/{launcher}"):  # it has ended before this
        os.kill(os.getpid(), signal.SIGTERM)


def program_name() -> str:
    """The command that called the running program, for its help: `logtrain cpt`, or `python -m logtrain.cpt`."""
    spec = sys.modules["__main__"].__spec__
    if spec is None or spec.name == "logtrain.__main__":
        return Path(sys.argv[0]).name
    return f"python -m {spec.name.removesuffix('.__main__')}"
