"""What a worker process of pool.py does. It needs nothing of the reading of files, of whose import 0.2 s are spared."""

import contextlib
import ctypes
import os
import queue
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from logtrain.core.worker import NO_MEMORY
from logtrain.data.encode import encode
from logtrain.text.tokenizer import Tokenizer

READY = -1  # what a worker sends for a number when it has loaded the tokenizer, with an error where it could not
QUESTION = -2  # the number of what is no chunk: in the encoder's place is what is asked of the tokenizer
NO_FAST_BINS = 1  # glibc's M_MXFAST: small blocks are joined when freed, not many at once: 3% of a worker's time
Work = tuple[int, list[Any], Any]  # a chunk's number, its items, and what encodes them


def work(connection: Connection, tokenizer_folder: str, num_threads: str) -> None:
    """What a worker does: its main thread reads, the others encode and send, so that neither side of the pipe ever
    waits in a send for the other to read.
    """
    with contextlib.suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).mallopt(NO_FAST_BINS, 0)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the library's own threads: ours do without
    try:
        tokenizer = Tokenizer.load(tokenizer_folder)
    except ValueError as error:
        connection.send((READY, str(error)))
        return
    connection.send((READY, None))
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
            number, items, encoder = received.get()
            try:
                encoded = encoder(tokenizer) if number == QUESTION else encode(encoder, items, tokenizer)
            except ValueError as error:
                encoded = str(error)
            with sending:
                connection.send((number, encoded))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)
    except MemoryError:
        os._exit(NO_MEMORY)
    except BaseException:  # one thread less, and the parent would wait for its chunk for ever
        traceback.print_exc()
        os._exit(1)
