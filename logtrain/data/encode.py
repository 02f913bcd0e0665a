"""Tokenises batches of text in worker processes and gives them back in order, whatever the number of workers.

Batch n goes to worker n % W and results are taken in the same turn, so the order is that of the input. Every worker has
a pipe of its own, and nobody else holds its ends: to the parent a dead worker (out of memory) is an end of file, and so
is a dead parent to the workers. Neither ever waits for the other in vain.

Legend: N tokens and D documents of a batch, W workers.
"""

import hashlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple, TypeVar

import numpy as np

from logtrain.tokenizer import Tokenizer

IN_FLIGHT = 2  # batches a worker has at most: the one it works on and the next, so that it never waits for the parent
Tag = TypeVar("Tag")


@dataclass(frozen=True)
class Framing:
    """How a text becomes a document: [BOS] ids [document end]."""

    bos_id: int | None
    document_end_id: int
    hash_key: bytes


class Encoded(NamedTuple):
    tokens_N: np.ndarray
    """uint32: the documents end to end"""
    lengths_D: np.ndarray
    """int32"""
    hashes_D: np.ndarray
    """uint64: keyed hash of each document's text"""


def encode(texts: Sequence[str], tokenizer: Tokenizer, framing: Framing) -> Encoded:
    tokens, lengths, hashes = array("I"), [], bytearray()
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        start = len(tokens)
        if framing.bos_id is not None:
            tokens.append(framing.bos_id)
        tokens.fromlist(ids)
        tokens.append(framing.document_end_id)
        lengths.append(len(tokens) - start)
        hashes += hashlib.blake2b(text.encode(), digest_size=8, key=framing.hash_key).digest()
    return Encoded(np.frombuffer(tokens, np.uint32), np.array(lengths, np.int32), np.frombuffer(hashes, "<u8"))


class Pool:
    """Worker processes, from the start of the `with` block to its end. They load the tokenizer as soon as they run."""

    def __init__(self, tokenizer: str, num_workers: int):
        self._tokenizer, self._num_workers = tokenizer, num_workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Pool":
        for _ in range(self._num_workers):
            self._workers.append(_Worker(self._tokenizer))
        return self

    def __exit__(self, *_) -> None:
        for worker in self._workers:
            worker.stop()

    def encode(self, batches: Iterable[tuple[Tag, list[str]]], framing: Framing) -> Iterator[tuple[Tag, Encoded]]:
        """(tag, texts) in, (tag, encoded texts) out, in order."""
        under_way: deque[tuple[Tag, _Worker]] = deque()
        for (tag, texts), worker in zip(batches, itertools.cycle(self._workers), strict=False):
            if len(under_way) == IN_FLIGHT * self._num_workers:
                oldest, its_worker = under_way.popleft()
                yield oldest, its_worker.receive()
            worker.send((texts, framing))
            under_way.append((tag, worker))
        for tag, worker in under_way:
            yield tag, worker.receive()


class _Worker:
    """The parent's side of a process."""

    def __init__(self, tokenizer: str):
        # Not forked: a child would inherit locks that some thread holds, but not the thread that is to release them.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, tokenizer), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, work: tuple[list[str], Framing]) -> None:
        try:
            self._connection.send(work)
        except OSError:
            raise self._death() from None

    def receive(self) -> Encoded:
        try:
            return self._connection.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            raise self._death() from None

    def stop(self) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def _death(self) -> ValueError:
        self._process.join()
        if self._process.exitcode == -signal.SIGKILL:
            return ValueError("a worker was killed, most likely for want of memory; try fewer --workers")
        return ValueError(f"a worker died with exit code {self._process.exitcode}; what it said stands above")


def _work(connection: Connection, tokenizer_folder: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent will end us
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    try:
        tokenizer = Tokenizer.load(tokenizer_folder)
    except ValueError:
        return  # the parent loads it too, and says what is wrong
    received: queue.SimpleQueue[tuple[list[str], Framing] | None] = queue.SimpleQueue()
    # Read on a thread: if both sides could be in the middle of a send, each would wait for the other to read.
    threading.Thread(target=_read, args=(connection, received), daemon=True).start()
    try:
        while (work := received.get()) is not None:
            connection.send(encode(work[0], tokenizer, work[1]))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the parent has gone, and nobody wants the rest


def _read(connection: Connection, received: queue.SimpleQueue) -> None:
    try:
        while True:
            received.put(connection.recv())
    except (EOFError, OSError):
        received.put(None)
