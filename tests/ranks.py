"""Real ranks for tests: a few long-lived processes that form gloo worlds of any size up to theirs, one world a call."""

import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
from program import SERVER, free_world


class Ranks:
    def __init__(self, count: int):
        self.pipes, self.processes = [], []
        for _ in range(count):
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
        answers = [pipe.recv() for pipe in self.pipes[:size]]
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
