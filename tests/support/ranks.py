"""Real ranks for tests: a few long-lived processes that form gloo worlds of any size up to theirs, one world a call."""

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from tests.support.program import SERVER, free_world

PATIENCE = 120.0  # seconds for an answer; a rank that waits for another that has left gives none


class Ranks:
    def __init__(self, count: int):
        self.count = count
        self.start()

    def start(self) -> None:
        self.pipes, self.processes = [], []
        for _ in range(self.count):
            ours, theirs = SERVER.Pipe()
            process = SERVER.Process(target=serve, args=(theirs,), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, size: int, function: Callable, *args: Any) -> list[Any]:
        """`function(*args)` on `size` ranks of a fresh world; -> what each returned. An error on any rank is raised
        here.
        """
        for env, pipe in zip(free_world(size), self.pipes, strict=False):
            pipe.send((env, function, args))
        answers, end = [], time.monotonic() + PATIENCE
        for rank, pipe in enumerate(self.pipes[:size]):
            if not pipe.poll(max(0, end - time.monotonic())):
                self.close()
                self.start()  # for the next test
                raise AssertionError(f"rank {rank} of {size} gave no answer in {PATIENCE} s; before it: {answers}")
            answers.append(pipe.recv())
        for rank, (ok, value) in enumerate(answers):
            assert ok, f"rank {rank} of {size}:\n{value}"
        return [value for _, value in answers]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def serve(pipe) -> None:
    torch.set_num_threads(1)
    os.chdir(tempfile.gettempdir())
    while True:
        env, function, args = pipe.recv()
        os.environ.update(env)
        try:
            answer = True, function(*args)
        except Exception:
            answer = False, traceback.format_exc()
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        pipe.send(answer)
