"""The program as real processes, to be signalled and killed. A server that has imported it forks them: a start takes
20 ms where `python -m` takes 4 s.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from logtrain.core.entry import run

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("logtrain.cpt", "logtrain.export", "logtrain.chat", "logtrain.serve", "logtrain.synthesise"),
        "torch.distributed.run",  # of launch/torchrun.py
        # What an entry imports after its flags.
        *("logtrain.training.run", "logtrain.readiness.foretold"),  # of cpt: 0.35 s of each process
        *("logtrain.conversation.repl", "logtrain.generation.load", "logtrain.serving.listening"),
        *("logtrain.synthesis.rows", "logtrain.synthesis.screen", "logtrain.synthesis.teacher"),
    ]
)


class Program:
    """`python -m logtrain.cpt FLAGS`, or another entry or the path of a script, on so many ranks; what they print goes
    to the file `output`.
    """

    def __init__(
        self,
        flags: Sequence[str],
        output: Path,
        *,
        ranks: int = 1,
        entry: str = "logtrain.cpt",
        environment: Mapping[str, str] | None = None,
    ):
        self.output = output
        output.write_text("")
        world = [{**env, **(environment or {})} for env in (free_world(ranks) if ranks > 1 else [{}])]
        self.processes = [SERVER.Process(target=become, args=(entry, flags, env, output), daemon=True) for env in world]
        for process in self.processes:
            process.start()

    def send(self, number: signal.Signals, rank: int | None = None) -> None:
        """A signal to one rank, or to all; one that has just ended does not mind."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def wait(self, seconds: float = 60) -> list[int]:
        """Exit statuses of the ranks (-n: ended by signal n), once all have ended."""
        for process in self.processes:
            process.join(seconds)
            if process.exitcode is None:
                self.send(signal.SIGKILL)
                raise AssertionError(f"still running after {seconds} s:\n{self.output.read_text()}")
        return [process.exitcode for process in self.processes]

    def until_or_end(self, happened: Callable[[], object]) -> None:
        """Wait for a moment in the life of the program, or for its end."""
        while not happened() and any(process.exitcode is None for process in self.processes):
            time.sleep(0.001)

    def until(self, happened: Callable[[], object]) -> None:
        """Wait for a moment in the life of the program."""
        while not happened():
            assert all(process.exitcode is None for process in self.processes), self.output.read_text()
            time.sleep(0.001)


def free_world(size: int) -> list[dict[str, str]]:
    """The environment in which torchrun starts each rank, with a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = ({"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size} for rank in range(size))
    of_all = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [of_all | {key: str(value) for key, value in env.items()} for env in ranks]


def become(entry: str, flags: Sequence[str], env: dict[str, str], output: Path) -> None:
    os.environ.update(env)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    sys.argv = [entry, *flags]
    if entry.endswith(".py"):
        runpy.run_path(entry, run_name="__main__")
    else:
        run(importlib.import_module(entry).main)


def last_step(run: Path) -> int:
    """The last step in the records of a run, which may be writing one now."""
    file = run / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0
