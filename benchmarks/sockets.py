"""Counts the sockets that a rank has in a group of many, all of them threads of a process: `sockets.py RANKS GROUP`."""

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# The groups of a job, and what each is used for.
GROUPS = {
    "default": ["allreduce"],
    "control": ["allreduce", "broadcast", "barrier"],
    "checkpoint": ["barrier", "allgather"],
}


def count_sockets(size: int, operations: list[str]) -> None:
    """Form a group of `size` ranks, let each do the operations, print what that took, and end the process: to take the
    group apart takes longer. The store is in memory; a real one adds a socket.
    """
    os.environ["TORCH_GLOO_LAZY_INIT"] = "1"  # as logtrain.core.world does
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    store, all_done, began = dist.HashStore(), threading.Barrier(size + 1), time.perf_counter()  # pyright: ignore
    errors: list[BaseException] = []

    def be_rank(rank: int) -> None:
        try:
            group = dist.ProcessGroupGloo(store, rank, size, timedelta(minutes=5))  # pyright: ignore
            for operation in operations:
                OPERATIONS[operation](group, size).wait()
        except BaseException as error:
            errors.append(error)
        all_done.wait()
        all_done.wait()

    for rank in range(size):
        threading.Thread(target=be_rank, args=(rank,), daemon=True).start()
    all_done.wait()
    if errors:
        raise errors[0]
    seconds = time.perf_counter() - began
    num_sockets = sum(path.is_socket() for path in Path("/proc/self/fd").iterdir())
    print(json.dumps({"sockets": round(num_sockets / size, 1), "seconds": round(seconds, 1)}), flush=True)
    os._exit(0)


OPERATIONS: dict[str, Callable[[Any, int], Any]] = {
    "allreduce": lambda group, size: group.allreduce([torch.ones(1)]),
    "broadcast": lambda group, size: group.broadcast(torch.ones(1), 0),
    "barrier": lambda group, size: group.barrier(),
    "allgather": lambda group, size: group.allgather([[torch.ones(1) for _ in range(size)]], [torch.ones(1)]),
}

if __name__ == "__main__":
    count_sockets(int(sys.argv[1]), GROUPS[sys.argv[2]])
