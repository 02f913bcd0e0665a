"""Which requests run, where in the cache each one lies, and what of each a step computes.

A request gets as many slots of the cache as it can come to need, in one run, or waits, so that nothing that runs ever
has to be thrown out. Requests are admitted in the order in which they come.

A step computes the last token of each sequence that is being answered, and as much of the prompts still to be read as
`step_tokens` leaves room for.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from logtrain.generation.kv_cache import Chunk
from logtrain.generation.request import Request
from logtrain.text.stream import TextStream


@dataclass(eq=False)
class RequestState:
    """A request that waits, runs, or is over and kept for the prompts that begin as it does."""

    request_id: int
    request: Request
    stream: TextStream
    ids: list[int]
    """the prompt's and the answer's so far"""
    num_slots: int
    """slots of the cache that are its own; it may not come to have more ids"""
    first_slot: int = 0
    """the first of them"""
    num_cached: int = 0
    """ids whose keys and values are in the cache"""
    seen_V: Tensor | None = None
    """bool: ids that the repetition penalty counts for; None until it is needed"""


class Prefix(NamedTuple):
    """A beginning that a prompt shares with a kept request."""

    state: RequestState
    length: int
    """tokens, at least one"""


class Admission(NamedTuple):
    """A request that has begun to run."""

    state: RequestState
    prefix: Prefix | None
    """keys and values to take over before the next step; they are there until then, even if their slots are this
    request's now"""


class Scheduled(NamedTuple):
    """What a step computes of one request."""

    state: RequestState
    chunk: Chunk


class Scheduler:
    """waiting: requests in the order in which they came. running: those admitted, likewise. kept: those that are over
    and whose keys and values stay until their slots are needed, the least recently used first.
    """

    def __init__(self, num_slots: int, max_sequences: int, step_tokens: int, keep_prefixes: bool):
        """`num_slots`: slots of the cache, numbered from 1. `keep_prefixes`: requests that are over are kept. Raises
        ValueError if a step has no token for each sequence.
        """
        if not 1 <= max_sequences <= step_tokens:
            raise ValueError(
                f"max_sequences = {max_sequences}, step_tokens = {step_tokens}: expected at least one sequence, and a "
                f"token in a step for each"
            )
        self.num_slots, self.max_sequences = num_slots, max_sequences
        self.step_tokens, self.keep_prefixes = step_tokens, keep_prefixes
        self.waiting: deque[RequestState] = deque()
        self.running: list[RequestState] = []
        self.kept: list[RequestState] = []

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self.waiting and not self.running

    def admit(self) -> list[Admission]:
        """Let waiting requests run, in order, as long as there is room for them."""
        admitted = []
        while self.waiting and len(self.running) < self.max_sequences:
            state = self.waiting[0]
            prefix = self.longest_prefix(state.ids)
            if prefix:
                self.touch(prefix.state)
            first_slot = self.make_room(state.num_slots)
            if first_slot is None:
                break
            state.first_slot = first_slot
            self.running.append(self.waiting.popleft())
            admitted.append(Admission(state, prefix))
        return admitted

    def schedule(self) -> list[Scheduled]:
        """What the next step computes, answers first; nothing changes by it."""
        room, scheduled = self.step_tokens, []
        for state in sorted(self.running, key=lambda state: len(state.ids) - state.num_cached > 1):
            if count := min(room, len(state.ids) - state.num_cached):
                tokens = state.ids[state.num_cached : state.num_cached + count]
                scheduled.append(Scheduled(state, Chunk(tokens, state.num_cached, state.first_slot)))
                room -= count
        return scheduled

    def cancel(self, request_id: int) -> None:
        """Run a request no further, whether it waits or runs; one that is over does not mind."""
        self.waiting = deque(state for state in self.waiting if state.request_id != request_id)
        for state in [state for state in self.running if state.request_id == request_id]:
            self.finish(state)

    def finish(self, state: RequestState) -> None:
        """A running request is over: it gives up its slots, but for what is kept of it."""
        self.running.remove(state)
        if self.keep_prefixes and state.num_cached:
            state.num_slots = state.num_cached
            self.kept.append(state)

    # ---- the cache

    def free_run(self, size: int) -> int | None:
        """The first slot of the first run of so many that are free; None: there is none."""
        start = 1
        for state in sorted((*self.running, *self.kept), key=lambda state: state.first_slot):
            if state.first_slot - start >= size:
                return start
            start = state.first_slot + state.num_slots
        return start if self.num_slots + 1 - start >= size else None

    def make_room(self, size: int) -> int | None:
        """The first slot of a free run, for which kept requests are dropped as far as needed; None: no room."""
        while (first_slot := self.free_run(size)) is None and self.kept:
            self.kept.pop(0)
        return first_slot

    def longest_prefix(self, ids: Sequence[int]) -> Prefix | None:
        """The kept request with which a prompt shares most of its beginning, if it shares any."""

        def shared(kept: RequestState) -> int:
            most = min(kept.num_cached, len(ids) - 1)  # the last token is computed in any case, for what follows it
            return next((i for i in range(most) if kept.ids[i] != ids[i]), most)

        best = max(self.kept, key=shared, default=None)
        return Prefix(best, length) if best and (length := shared(best)) else None

    def touch(self, kept: RequestState) -> None:
        """Make a kept request the most recently used, which is dropped last. If that is for the very prompt that takes
        it over, its keys and values are still where they were: a chat that grows needs no second run of slots.
        """
        self.kept.remove(kept)
        self.kept.append(kept)
