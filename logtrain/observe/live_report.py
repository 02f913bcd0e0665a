"""The report of a run while it runs: another process writes it, at a low priority, so that no step waits for it."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

BETWEEN = 60.0  # seconds from the start, and from one report to the next: a report takes one or two of a processor
LAST = 30.0  # seconds that the last report may take before the run ends without it
OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # it is none of the ranks


class LiveReport:
    """Writes report.html into a run's folder now and then. Nothing that goes wrong with it stops a run."""

    def __init__(self, folder: Path, *, enabled: bool):
        self.folder, self.enabled = folder, enabled
        self.last = time.monotonic()
        self.process: subprocess.Popen | None = None

    def refresh(self) -> None:
        """Begin to write the report, unless one was begun within the last minute."""
        is_busy = self.process is not None and self.process.poll() is None
        if not self.enabled or is_busy or time.monotonic() - self.last < BETWEEN:
            return
        self.last = time.monotonic()
        command = [sys.executable, "-m", "logtrain.report", str(self.folder), "--no_pictures"]
        nice = ["nice", "-n", "15"] if shutil.which("nice") else []
        environment = {key: value for key, value in os.environ.items() if key not in OF_RANKS}
        with contextlib.suppress(OSError):
            self.process = subprocess.Popen(
                [*nice, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the run
            )

    def close(self) -> None:
        """Write the report of the whole run, if there has been one before, or it has lasted for a minute."""
        if self.process is not None:
            self.last = -BETWEEN
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(LAST)
        self.refresh()
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(LAST)
