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

    tokenizer: str
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


def encode_all(
    batches: Iterable[tuple[Tag, list[str]]], framing: Framing, num_workers: int
) -> Iterator[tuple[Tag, Encoded]]:
    """(tag, texts) in, (tag, encoded texts) out, in order. Close the iterator to end the workers early."""
    workers: list[_Worker] = []
    under_way: deque[tuple[Tag, _Worker]] = deque()

    def oldest() -> tuple[Tag, Encoded]:
        tag, worker = under_way.popleft()
        return tag, worker.receive()

    try:
        for _ in range(num_workers):
            workers.append(_Worker(framing))
        for (tag, texts), worker in zip(batches, itertools.cycle(workers), strict=False):
            if len(under_way) == IN_FLIGHT * num_workers:
                yield oldest()
            worker.send(texts)
            under_way.append((tag, worker))
        while under_way:
            yield oldest()
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """The parent's side of a process."""

    def __init__(self, framing: Framing):
        context = multiprocessing.get_context(
            "spawn"
        )  # a forked child could hang on a lock of a thread it does not have
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, framing), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, texts: list[str]) -> None:
        try:
            self._connection.send(texts)
        except (BrokenPipeError, ConnectionResetError):
            raise self._death() from None

    def receive(self) -> Encoded:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
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


def _work(connection: Connection, framing: Framing) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent ends us by closing the pipe
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    tokenizer = Tokenizer.load(framing.tokenizer)
    batches: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
    # Read on a thread: if both sides could be in the middle of a send, each would wait for the other to read.
    threading.Thread(target=_read, args=(connection, batches), daemon=True).start()
    try:
        while (texts := batches.get()) is not None:
            connection.send(encode(texts, tokenizer, framing))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the parent has gone, and nobody wants the rest


def _read(connection: Connection, batches: queue.SimpleQueue) -> None:
    try:
        while True:
            batches.put(connection.recv())
    except (EOFError, OSError):
        batches.put(None)
