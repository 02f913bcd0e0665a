"""Decides which requests run, which slots of the cache they have, and which of their tokens a step computes.

A request waits until there are as many successive free slots as it may ever need, so a running request is never thrown
out. Requests start in the order in which they were submitted.

A step computes the last token of each sequence that is being answered, and as much of the unread prompts as
`step_tokens` leaves room for. A step of a few answers alone also takes draft tokens (lookup.py).
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from logtrain.generation.kv_cache import Chunk
from logtrain.generation.logits import LogitChanges
from logtrain.generation.lookup import Lookup
from logtrain.generation.request import Request, TokenLogprob
from logtrain.text.stream import TextStream

PIECE = 64  # tokens that are compared at once
WORTH_WAITING = 64  # tokens of a common beginning for which a request waits until another one has read them


@dataclass(eq=False)
class RequestState:
    """A request that waits, that runs, or that is over and kept for prompts that begin alike."""

    request_id: int
    """The id that `Generator.submit` returned."""
    request: Request
    """The prompt, and how it is answered."""
    stream: TextStream
    """The text of the answer so far."""
    ids: list[int]
    """Token ids of the prompt and of the answer so far."""
    num_slots: int
    """Number of its slots in the cache, which `ids` never outgrows."""
    first_slot: int = 0
    """The first of its slots."""
    num_cached: int = 0
    """Number of ids whose keys and values are in the cache."""
    num_reused: int = 0
    """Number of ids whose keys and values came from another request."""
    lookup: Lookup = field(default_factory=Lookup)
    """Drafts what may follow `ids`."""
    changes: LogitChanges | None = None
    """What it changes in its logits; None until its prompt is read, and when it is over."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """Log-probabilities of the prompt's tokens from the second on, until they are told."""


class Prefix(NamedTuple):
    """A beginning that a prompt shares with a request that is kept, or that runs."""

    state: RequestState
    """That request."""
    length: int
    """Number of the shared tokens, at least one."""


class Admission(NamedTuple):
    """A request that has started."""

    state: RequestState
    """The request."""
    prefix: Prefix | None
    """The prefix whose keys and values must be copied before the next step. Until then they are intact, even if their
    slots have become this request's."""


class Scheduled(NamedTuple):
    """The tokens of one request in a step."""

    state: RequestState
    """The request."""
    chunk: Chunk
    """Its tokens that the step computes."""


def shared_length(other: RequestState, state: RequestState, unread: bool = False) -> int:
    """The number of tokens with which `state` can begin once `other` is computed as far as it is, or with `unread` once
    its prompt is read.
    """
    if other.request.adapter != state.request.adapter or other.ids[:1] != state.ids[:1]:
        return 0
    # The last token is computed in any case, for what follows it.
    most = min(len(other.request.prompt) if unread else other.num_cached, len(state.ids) - 1)
    at = 0
    while at < most and other.ids[at : at + PIECE] == state.ids[at : at + PIECE]:  # 20 times as fast as one by one
        at += PIECE
    return next((i for i in range(at, most) if other.ids[i] != state.ids[i]), most) if at < most else most


class Scheduler:
    """The requests under way. waiting: those that have not started, in the order of submission. running: those that
    have started, in that order. kept: those that are over and whose keys and values stay until their slots are needed,
    the least recently used first.
    """

    def __init__(
        self, num_slots: int, max_sequences: int, step_tokens: int, keep_prefixes: bool, draft_step_tokens: int = 0
    ):
        """`num_slots`: slots of the cache, numbered from 1. `max_sequences`: the most requests that run at once.
        `step_tokens`: the most tokens of a step. `keep_prefixes`: keep requests that are over. `draft_step_tokens`: the
        most tokens of a step with draft tokens. Raises ValueError if `step_tokens` is less than `max_sequences`.
        """
        if not 1 <= max_sequences <= step_tokens:
            raise ValueError(
                f"max_sequences = {max_sequences}, step_tokens = {step_tokens}: expected at least one sequence, and a "
                f"token in a step for each"
            )
        self.num_slots, self.max_sequences = num_slots, max_sequences
        self.step_tokens, self.keep_prefixes, self.draft_step_tokens = step_tokens, keep_prefixes, draft_step_tokens
        self.waiting: deque[RequestState] = deque()
        self.running: list[RequestState] = []
        self.kept: list[RequestState] = []

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self.waiting and not self.running

    def admit(self) -> list[Admission]:
        """Start waiting requests, in order, as long as there is room; -> those that started."""
        admitted = []
        while self.waiting and len(self.running) < self.max_sequences:
            state = self.waiting[0]
            prefix = self.longest_prefix(state)
            if self.is_being_read(state, prefix.length if prefix else 0):
                break
            if prefix and prefix.state in self.kept:
                self.touch(prefix.state)
            first_slot = self.make_room(state.num_slots)
            if first_slot is None:
                break
            state.first_slot = first_slot
            self.running.append(self.waiting.popleft())
            admitted.append(Admission(state, prefix))
        return admitted

    def schedule(self) -> list[Scheduled]:
        """The tokens of the next step, those of answers before those of prompts. Which requests run is not changed."""
        if self.running and all(len(state.ids) - state.num_cached == 1 for state in self.running):
            most = min(self.draft_step_tokens, self.step_tokens) // len(self.running) - 1
            if most > 0:
                return [self.with_drafts(state, most) for state in self.running]
        room, scheduled = self.step_tokens, []
        for state in sorted(self.running, key=lambda state: len(state.ids) - state.num_cached > 1):
            if count := min(room, len(state.ids) - state.num_cached):
                tokens = state.ids[state.num_cached : state.num_cached + count]
                chunk = Chunk(tokens, state.num_cached, state.first_slot, state.request.adapter)
                scheduled.append(Scheduled(state, chunk))
                room -= count
        return scheduled

    def with_drafts(self, state: RequestState, most: int) -> Scheduled:
        """The last token of an answer, and up to `most` draft tokens."""
        last, room = state.ids[-1], state.num_slots - len(state.ids) - 1  # the last token of all is never put in
        drafted = state.lookup.drafts(state.ids, min(most, room))
        chunk = Chunk([last, *drafted], state.num_cached, state.first_slot, state.request.adapter, len(drafted))
        return Scheduled(state, chunk)

    def cancel(self, request_id: int) -> None:
        """Remove a request, whether it waits or runs. For a request that is over this does nothing."""
        self.waiting = deque(state for state in self.waiting if state.request_id != request_id)
        for state in [state for state in self.running if state.request_id == request_id]:
            self.finish(state)

    def finish(self, state: RequestState) -> None:
        """End a running request. Its slots become free, or with `keep_prefixes` those that it has not used."""
        self.running.remove(state)
        state.changes, state.prompt_logprobs, state.lookup = None, [], Lookup()
        if self.keep_prefixes and state.num_cached:
            state.num_slots = state.num_cached
            # Earlier turns of the same chat are in it: their slots are worth more to others.
            self.kept = [kept for kept in self.kept if shared_length(kept, state) < kept.num_cached]
            self.kept.append(state)

    # ---- the cache

    def free_run(self, size: int) -> int | None:
        """The first of `size` successive free slots; None if there are none."""
        start = 1
        for state in sorted((*self.running, *self.kept), key=lambda state: state.first_slot):
            if state.first_slot - start >= size:
                return start
            start = state.first_slot + state.num_slots
        return start if self.num_slots + 1 - start >= size else None

    def make_room(self, size: int) -> int | None:
        """Drop kept requests until there are `size` successive free slots; -> the first of them, None if there is no
        room.
        """
        while (first_slot := self.free_run(size)) is None and self.kept:
            self.kept.pop(0)
        return first_slot

    def longest_prefix(self, state: RequestState) -> Prefix | None:
        """The request with which a waiting one shares the longest beginning that the cache has; None if it shares none,
        or wants log-probabilities of its prompt.
        """
        if not self.keep_prefixes or state.request.prompt_logprobs:
            return None
        best = max((*self.kept, *self.running), key=lambda other: shared_length(other, state), default=None)
        return Prefix(best, length) if best and (length := shared_length(best, state)) else None

    def is_being_read(self, state: RequestState, reused: int) -> bool:
        """Whether a running request is reading a prompt that begins as a waiting one does, beyond what that would reuse
        now: then it had better wait, as several questions on one log do that are asked at once.
        """
        if not self.keep_prefixes or state.request.prompt_logprobs:
            return False
        unread = [other for other in self.running if other.num_cached < len(other.request.prompt)]
        return any(shared_length(other, state, unread=True) >= reused + WORTH_WAITING for other in unread)

    def touch(self, kept: RequestState) -> None:
        """Make a kept request the most recently used, which is dropped last. If it is dropped after all for the prompt
        that reuses it, its keys and values are still in their slots, so a growing chat needs no second set of slots.
        """
        self.kept.remove(kept)
        self.kept.append(kept)
