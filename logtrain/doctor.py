"""Checks the GPUs and machines of a job, and what is installed.

    logtrain doctor                 of this process alone
    launch/run.sh doctor --json     every GPU of every node

Drivers, clocks, links and memory errors by NVML; matrix products, copies and collectives held against what GPUs of that
kind reach; processors, memory, disk, names, the shared folder; versions, and what is missing for which option. Nothing
is left behind. The exit status is 2 where something is wrong, after a line for each such thing.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.core.kinds import Config
from logtrain.core.location import FOLDER


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Config):
    """Check the machines and GPUs of a job."""

    runs: Annotated[str, FOLDER] = "runs"
    """Folder that runs would be written to, of which the disk is measured."""
    seconds: float = 10.0
    """Seconds of matrix products on every GPU: power and heat lower the clocks after some. On a CPU at most two."""
    gpu: str = ""
    """Name of the GPU whose figures are expected, or a TOML file, as for logtrain plan. By default that of its name."""
    json: bool = False
    """Print one JSON object instead of lines."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.seconds <= 3600:
            raise ValueError(f"seconds = {self.seconds} must be above 0 and at most 3600")


def main(argv: list[str]) -> int:
    """Print what was found; -> the exit status."""
    config = load(DoctorConfig, argv)
    from logtrain.core.still import Still  # after the flags: a mistyped one needs no torch
    from logtrain.planning.gpu_file import gpu_of, read_gpu
    from logtrain.readiness.checkup import examine, lines

    if config.gpu:
        read_gpu(config.gpu)
    is_main = os.environ.get("RANK", "0") == "0"
    with Still(is_main):
        found = examine(Path(config.runs), config.seconds, config.gpu)
    known = config.gpu or gpu_of(found.devices[0].name) or ""
    if is_main:
        text = (
            json.dumps(found.to_json()) if config.json else "\n".join(lines(found, read_gpu(known) if known else None))
        )
        print(text, flush=True)
    if count := len(found.problems):
        raise ValueError(f"doctor: {count} {'thing is' if count == 1 else 'things are'} wrong, as said above")
    return 0


if __name__ == "__main__":
    run(main)
