"""The worker processes as the server sees them: each request goes to one, and its events come back to who asked.

Two threads for each worker wait for its pipe in the server's place, which never blocks: a worker reads its messages
only between two steps. All else happens in the server's event loop.

A worker that dies takes its requests with it, each of which gets an error; another one is started in its place.
"""

import asyncio
import contextlib
import itertools
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

from logtrain.core.printable import printable
from logtrain.core.still import note
from logtrain.core.worker import Worker
from logtrain.generation.request import Event, Request
from logtrain.serving.engine import MODULE, Cancel, EngineConfig, Load, Progress, Ready, Refused, Submit
from logtrain.serving.errors import ApiError, unavailable

PAUSES = (0.0, 1.0, 5.0, 15.0, 60.0)  # seconds before a worker is started again, by how often it died in a row
PREFIX_TOKENS = 128  # beginnings of prompts are remembered in pieces of so many tokens
REMEMBERED = 4096  # pieces for each worker
Message = tuple[int, Event] | ApiError  # number of the request among those of its ticket, and what came


class Ticket:
    """The requests of one client that are under way. load: how many are not yet answered."""

    def __init__(self, count: int):
        self.load = count
        self.messages: asyncio.Queue[Message] = asyncio.Queue()


class PooledWorker:
    """One worker process, and the requests that it has. ready: what it said when it had loaded, None before."""

    def __init__(self, pool: "WorkerPool", config: EngineConfig):
        self.pool, self.config = pool, config
        self.ready: Ready | None = None
        self.load = Load()
        self.num_deaths = 0  # in a row
        self.requests: dict[int, tuple[Ticket, int]] = {}  # by key
        self.prefixes: OrderedDict[int, None] = OrderedDict()  # hashes of beginnings that its cache may have

    def start(self) -> None:
        """Start the process; `ready` is set later."""
        self.process, self.outbox = Worker(MODULE), SimpleQueue()
        self.outbox.put(self.config)
        for target in (self.send, self.receive):
            threading.Thread(target=target, args=(self.process, self.outbox), daemon=True).start()

    def send(self, process: Worker, outbox: "SimpleQueue[Any]") -> None:
        """A thread: what is in the outbox goes to the process, until None."""
        try:
            while (message := outbox.get()) is not None:
                process.send(message)
        except ValueError:
            pass  # it is dead, as the other thread will see

    def receive(self, process: Worker, outbox: "SimpleQueue[Any]") -> None:
        """A thread: what the process sends goes to the event loop, until it is dead."""
        call = self.pool.loop.call_soon_threadsafe
        try:
            while True:
                call(self.take, process.receive())
        except ValueError as error:
            outbox.put(None)
            reason = str(error)
        with contextlib.suppress(RuntimeError):  # the loop has ended before it
            call(self.bury, process, reason)

    def take(self, message: Ready | Refused | Progress) -> None:
        """What the process has sent."""
        if isinstance(message, Ready):
            self.ready, self.num_deaths = message, 0
            self.pool.changed.set()
        elif isinstance(message, Progress):
            self.load = message.load
            for key, event in message.events:
                if key in self.requests:  # it may have been cancelled since
                    ticket, number = self.requests[key]
                    if event.answer:
                        del self.requests[key]
                        ticket.load -= 1
                    ticket.messages.put_nowait((number, event))
        elif message.key:
            if found := self.requests.pop(message.key, None):
                found[0].messages.put_nowait(ApiError(400, message.message))
        else:
            self.pool.failure = message.message

    def bury(self, process: Worker, reason: str) -> None:
        """The process is dead."""
        process.stop()
        self.ready, self.load, self.prefixes = None, Load(), OrderedDict()
        requests, self.requests = self.requests, {}
        for ticket in {id(ticket): ticket for ticket, _ in requests.values()}.values():
            ticket.messages.put_nowait(unavailable("the process that was answering has died"))
        self.pool.changed.set()
        if self.pool.is_closing or not self.pool.is_open:
            self.pool.failure = self.pool.failure or reason
            return
        pause = PAUSES[min(self.num_deaths, len(PAUSES) - 1)]
        self.num_deaths += 1
        self.pool.num_restarts += 1
        what = f"{self.config.device}: {reason}; {len(requests)} requests lost; starting again in {pause:.0f} s"
        print(printable(what), file=sys.stderr, flush=True)
        self.pool.loop.call_later(pause, self.restart)

    def restart(self) -> None:
        """Start the process again, unless the server is ending."""
        if not self.pool.is_closing:
            self.start()

    def remember(self, hashes: Sequence[int]) -> int:
        """Take note of the beginnings of a prompt -> how many of them its cache may have already."""
        known = next((i for i, piece in enumerate(hashes) if piece not in self.prefixes), len(hashes))
        for piece in hashes:
            self.prefixes[piece] = None
            self.prefixes.move_to_end(piece)
        while len(self.prefixes) > REMEMBERED:
            self.prefixes.popitem(last=False)
        return known


class WorkerPool:
    """All workers. is_open: whether all have been ready once. failure: what the user gave that no worker can load."""

    def __init__(self, configs: Sequence[EngineConfig], max_queue: int):
        """A worker for each of `configs`. `max_queue`: the most requests that wait beside those that run."""
        self.workers = [PooledWorker(self, config) for config in configs]
        self.max_queue = max_queue
        self.capacity = max_queue + sum(config.max_sequences for config in configs)
        self.keys = itertools.count(1)
        self.is_open = self.is_closing = False
        self.failure, self.num_restarts = "", 0

    async def open(self) -> None:
        """Start all workers and wait until each has loaded. Raises ValueError for what one cannot load."""
        self.loop, self.changed = asyncio.get_running_loop(), asyncio.Event()
        note("loading the models")
        for worker in self.workers:
            worker.start()
        while not all(worker.ready for worker in self.workers):
            await self.changed.wait()
            self.changed.clear()
            if self.failure:
                self.close()
                raise ValueError(self.failure)
        self.is_open = True

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        self.is_closing = True
        for worker in self.workers:
            worker.process.stop()

    @property
    def ready(self) -> list[PooledWorker]:
        """The workers that answer now."""
        return [worker for worker in self.workers if worker.ready]

    def gauges(self) -> dict[str, tuple[str, float]]:
        """What the workers are doing: help and value by name."""
        loads = [worker.load for worker in self.workers]
        slots = sum(worker.ready.num_slots for worker in self.workers if worker.ready)
        return {
            "logtrain_workers_ready": ("Workers that answer now.", len(self.ready)),
            "logtrain_worker_restarts": ("How often a worker was started again.", self.num_restarts),
            "logtrain_answers_under_way": ("Answers that are not complete, waiting or not.", self.num_under_way),
            "logtrain_answers_running": ("Answers that are generated now.", sum(load.running for load in loads)),
            "logtrain_answers_waiting": ("Answers that wait for a place.", sum(load.waiting for load in loads)),
            "logtrain_cache_tokens": ("Tokens that the caches have room for.", slots),
            "logtrain_cache_tokens_used": ("Of running answers.", sum(load.used_slots for load in loads)),
            "logtrain_cache_tokens_kept": ("Of answers that are over.", sum(load.kept_slots for load in loads)),
            "logtrain_resident_bytes": ("Memory of the server, without its workers.", resident_bytes()),
        }

    @property
    def num_under_way(self) -> int:
        """Requests that are not answered yet."""
        return sum(len(worker.requests) for worker in self.workers)

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Give requests to the least loaded workers; of equally loaded ones, to that which knows the beginning of the
        prompt. Raises ApiError if the queue is full or no worker is ready.
        """
        if len(requests) > self.capacity:
            raise ApiError(400, f"{len(requests):,} answers in one request; {self.capacity:,} is the most")
        if not self.ready:
            raise unavailable("no process is ready to answer")
        if (waiting := self.num_under_way + len(requests) - self.capacity) > 0:
            raise ApiError(
                429,
                f"{self.num_under_way:,} answers are under way or wait, and there is room for {self.capacity:,}",
                code="queue_full",
                retry_after=min(1 + waiting // len(self.ready) // 8, 60),
            )
        ticket = Ticket(len(requests))
        for number, request in enumerate(requests):
            worker, key = self.choose(request), next(self.keys)
            worker.requests[key] = ticket, number
            worker.outbox.put(Submit(key, request))
        return ticket

    def choose(self, request: Request) -> PooledWorker:
        """The worker for a request."""
        ready = self.ready
        if len(ready) == 1:
            return ready[0]
        hashes, running = [], hash(request.adapter)
        for at in range(0, len(request.prompt) - PREFIX_TOKENS + 1, PREFIX_TOKENS):
            running = hash((running, *request.prompt[at : at + PREFIX_TOKENS]))
            hashes.append(running)
        least = min(len(worker.requests) for worker in ready)
        # A worker that knows the beginning may have some more to do: reading it anew takes as long as many steps.
        known = {id(w): next((i for i, h in enumerate(hashes) if h not in w.prefixes), len(hashes)) for w in ready}
        near = [w for w in ready if len(w.requests) <= least + (4 if known[id(w)] else 0)]
        best = max(near, key=lambda w: (known[id(w)], -len(w.requests)))
        best.remember(hashes)
        return best

    def cancel(self, ticket: Ticket) -> None:
        """Stop answering what is left of a ticket."""
        if not ticket.load:
            return
        for worker in self.workers:
            for key in [key for key, (other, _) in worker.requests.items() if other is ticket]:
                del worker.requests[key]
                worker.outbox.put(Cancel(key))
        ticket.load = 0


def resident_bytes() -> int:
    """The memory that this process has, in bytes; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
