"""Real ranks for tests: a few long-lived processes that form gloo worlds of any size up to theirs, one world a call."""

import multiprocessing
import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch


class Ranks:
    def __init__(self, count: int):
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs,), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, size: int, function: Callable, *args: Any) -> list[Any]:
        """`function(*args)` on `size` ranks of a fresh world; -> what each returned. An error on any rank is raised
        here.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank, pipe in enumerate(self.pipes[:size]):
            env = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            pipe.send(({key: str(value) for key, value in env.items()}, function, args))
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
