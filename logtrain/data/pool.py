"""Worker processes, each with a few threads, that tokenise chunks of texts or conversations and give them back in
order.

Threads of one process share the tokenizer and its cache of words: two threads are 20% faster on 2 cores than two
processes. They also share Python's lock, which they need for about a tenth of the work, so a process has at most 8.

A chunk goes to the worker that is free first, for cores are never equally fast: dealt out in turn, the slowest would
set the pace.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from logtrain.core.worker import Worker, wait
from logtrain.data.chunks import CHUNK_CHARS
from logtrain.data.encode import Encoded, Encoder
from logtrain.data.pool_worker import QUESTION, READY
from logtrain.text.tokenizer import Tokenizer

THREADS_PER_WORKER = 8  # at most
MAX_DEFAULT_WORKERS = 4  # one process reads for all; beyond 32 threads it would be what they wait for
IN_HAND = 2  # chunks a thread has at most: the one it works on and the next, so that it never waits for the parent
AHEAD = 6  # chunks a thread, sent or done, that may wait for a slow one before them; bounds the memory
SECONDS = 20.0  # for a chunk, of which 80 ms is usual, and as much again for every so many characters in it
LOAD_SECONDS = 300.0  # for a worker to start, on a machine that is busy with other things
MEMORY_SHARE = 0.8  # of the machine's memory, for all workers: beyond it the machine would stand still
Tag = TypeVar("Tag")
Answer = TypeVar("Answer")


class Pool:
    """Worker processes, from the start of the `with` block to its end. They load the tokenizer as soon as they run."""

    @classmethod
    def on_all_cores(cls, tokenizer: str, num_workers: int = 0) -> "Pool":
        """A pool of so many workers, which share the cores between them. 0: one for every 8 cores, up to 4."""
        num_cores = len(os.sched_getaffinity(0))
        num_workers = num_workers or min(-(-num_cores // THREADS_PER_WORKER), MAX_DEFAULT_WORKERS)
        return cls(tokenizer, num_workers, min(max(1, num_cores // num_workers), THREADS_PER_WORKER))

    def __init__(self, tokenizer: str, num_workers: int, num_threads: int):
        """`tokenizer`: its folder. `num_threads`: in each worker."""
        self._tokenizer, self._num_workers, self._num_threads = tokenizer, num_workers, num_threads
        self._workers: list[Worker] = []
        self._is_ready = False  # whether a worker has loaded the tokenizer

    def __enter__(self) -> "Pool":
        memory = int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * MEMORY_SHARE) // self._num_workers
        for _ in range(self._num_workers):
            self._workers.append(Worker("logtrain.data.pool_worker", self._tokenizer, self._num_threads, memory=memory))
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def ask(self, question: Callable[[Tokenizer], Answer]) -> Answer:
        """What a function, which is sent to a worker, says of the tokenizer; before anything is encoded. Raises
        ValueError where the tokenizer cannot be loaded, or the function does.
        """
        worker = self._workers[0]
        if not self._is_ready:
            self._received(worker)
            self._is_ready = True
        worker.send((QUESTION, [], question))
        return self._received(worker)

    def _received(self, worker: Worker) -> Any:
        if not wait([worker], LOAD_SECONDS):
            raise ValueError(f"{self._tokenizer}: loading the tokenizer did not end within {LOAD_SECONDS:.0f} seconds")
        _, answer = worker.receive()
        if isinstance(answer, str):
            raise ValueError(answer)
        return answer

    def encode(
        self,
        chunks: Iterable[tuple[Tag, list[Any]]],
        encoder: Encoder,
        where: Callable[[Tag], str] = str,
        num_chars: Callable[[Tag], int] = lambda _: 0,
    ) -> Iterator[tuple[Tag, Encoded]]:
        """(tag, items) in, (tag, what `encoder` makes of the items) out, in order. Raises ValueError where a worker
        dies, and where a chunk takes too long or cannot be encoded: `where` names it, `num_chars` is how much it holds.
        """
        free = deque(self._workers * (IN_HAND * self._num_threads))  # a worker is here once for each chunk it can take
        most = AHEAD * self._num_threads * self._num_workers
        tags: deque[Tag] = deque()  # of the chunks sent and not yet given out; the first is number `given`
        done: dict[int, Encoded] = {}
        given = 0
        chunks = iter(chunks)
        while True:
            while free and len(tags) < most and (chunk := next(chunks, None)) is not None:
                tag, items = chunk
                free.popleft().send((given + len(tags), items, encoder))
                tags.append(tag)
            if not tags:
                return
            seconds = SECONDS * max(1, max(map(num_chars, tags)) / CHUNK_CHARS) if self._is_ready else LOAD_SECONDS
            ready = wait(self._workers, seconds)
            if not ready:
                what = "the tokenizer or the chat template" if self._is_ready else "loading the tokenizer"
                raise ValueError(f"{where(tags[0])}: {what} did not end within {seconds:.0f} seconds")
            for worker in ready:
                number, encoded = worker.receive()
                if isinstance(encoded, str):
                    raise ValueError(encoded if number == READY else f"{where(tags[number - given])}: {encoded}")
                if number == READY:
                    self._is_ready = True
                    continue
                done[number] = encoded
                free.append(worker)
            while given in done:
                yield tags.popleft(), done.pop(given)
                given += 1
