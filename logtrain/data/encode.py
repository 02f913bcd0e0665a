"""Tokenises batches of text, or of conversations, in worker processes, each with a few threads, and gives them back
in order.

Threads of one process share the tokenizer and its cache of words: two threads are 20% faster on 2 cores than two
processes. They also share Python's lock, which they need for about a tenth of the work, so a process has at most 8.

A batch goes to the worker that is free first, for cores are never equally fast: dealt out in turn, the slowest would
set the pace.

Legend: N tokens and D documents of a batch.
"""

import hashlib
import os
import queue
import threading
import traceback
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import NamedTuple, TypeVar

import numpy as np

from logtrain.core.worker import Worker
from logtrain.text.tokenizer import Tokenizer

IN_HAND = 2  # batches a thread has at most: the one it works on and the next, so that it never waits for the parent
AHEAD = 6  # batches a thread, sent or done, that may wait for a slow one before them; bounds the memory
Tag = TypeVar("Tag")


@dataclass(frozen=True)
class Framing:
    """How a text becomes a document: [BOS] ids [document end]."""

    bos_id: int | None
    document_end_id: int
    hash_key: bytes

    def encode(self, texts: Sequence[str], tokenizer: Tokenizer) -> "Encoded":
        return encode(texts, tokenizer, self)


class Encoded(NamedTuple):
    tokens_N: np.ndarray
    """uint32: the documents end to end"""
    lengths_D: np.ndarray
    """int32"""
    targets_D: np.ndarray
    """int32: tokens that are predicted"""
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
    lengths_D = np.array(lengths, np.int32)
    return Encoded(np.frombuffer(tokens, np.uint32), lengths_D, lengths_D - 1, np.frombuffer(hashes, "<u8"))


class Pool:
    """Worker processes, from the start of the `with` block to its end. They load the tokenizer as soon as they run."""

    def __init__(self, tokenizer: str, num_workers: int, num_threads: int):
        """`num_threads`: in each worker."""
        self._tokenizer, self._num_workers, self._num_threads = tokenizer, num_workers, num_threads
        self._workers: list[Worker] = []

    def __enter__(self) -> "Pool":
        for _ in range(self._num_workers):
            self._workers.append(Worker("logtrain.data.encode", self._tokenizer, self._num_threads))
        return self

    def __exit__(self, *_) -> None:
        for worker in self._workers:
            worker.stop()

    def encode(self, batches: Iterable[tuple[Tag, list]], framing: Framing) -> Iterator[tuple[Tag, Encoded]]:
        """(tag, texts) in, (tag, encoded texts) out, in order. What a batch holds, and what becomes of it, is the
        framing's: its `encode(batch, tokenizer)` is called, in a worker."""
        free = deque(self._workers * (IN_HAND * self._num_threads))  # a worker is here once for each batch it can take
        most = AHEAD * self._num_threads * self._num_workers
        tags: deque[Tag] = deque()  # of the batches sent and not yet given out; the first is number `given`
        done: dict[int, Encoded] = {}
        given = 0
        batches = iter(batches)
        while True:
            while free and len(tags) < most and (batch := next(batches, None)) is not None:
                tag, texts = batch
                free.popleft().send((given + len(tags), texts, framing))
                tags.append(tag)
            if not tags:
                return
            for worker in wait(self._workers):
                number, encoded = worker.receive()
                done[number] = encoded
                free.append(worker)
            while given in done:
                yield tags.popleft(), done.pop(given)
                given += 1


Work = tuple[int, list, Framing]


def work(connection: Connection, tokenizer_folder: str, num_threads: str) -> None:
    """A worker's main thread reads, the others encode and send, so that neither side of the pipe ever waits in a send
    for the other to read."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the library's own threads: ours do without
    try:
        tokenizer = Tokenizer.load(tokenizer_folder)
    except ValueError:
        return  # the parent loads it too, and says what is wrong
    received: queue.SimpleQueue[Work] = queue.SimpleQueue()
    sending = threading.Lock()
    for _ in range(int(num_threads)):
        threading.Thread(target=_encode_forever, args=(received, tokenizer, connection, sending), daemon=True).start()
    while True:
        received.put(connection.recv())


def _encode_forever(
    received: queue.SimpleQueue[Work], tokenizer: Tokenizer, connection: Connection, sending: threading.Lock
) -> None:
    try:
        while True:
            number, texts, framing = received.get()
            encoded = framing.encode(texts, tokenizer)
            with sending:
                connection.send((number, encoded))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)
    except BaseException:  # one thread less, and the parent would wait for its batch for ever
        traceback.print_exc()
        os._exit(1)
