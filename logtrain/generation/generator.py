"""Answers of a model: many requests at once, each joining the running batch as soon as there is room for it.

    generator = Generator(model, tokenizer, stop_ids, memory=2**30)
    for number, answer in generator.run(Request(prompt=ids) for ids in prompts): ...

A step takes the last token of each sequence that is being answered, and as much of the prompts still to be read as
`step_tokens` leaves room for. A sequence gets as many places of the cache as it can come to need, or waits, so that
nothing ever has to be thrown out. Requests are begun in the order in which they come.

Shapes in names: S sequences, V vocabulary.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from logtrain.generation.kv_cache import CachedModel, Chunk, place_bytes
from logtrain.generation.sampling import SamplingConfig, distribution, draw, penalised, uniform
from logtrain.model.llama import Llama
from logtrain.text.stream import TextStream
from logtrain.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Request:
    prompt: Sequence[int]
    """Token ids, at least one."""
    max_new_tokens: int = 1024
    """An answer ends after so many, or where the model knows no more positions."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    number: int = 0
    """Of the request among others with the same seed: its draws are its own."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer; they are not part of it."""
    ignore_stop_ids: bool = False
    """Go on to max_new_tokens whatever comes (for measurements)."""

    def __post_init__(self):
        if not self.prompt:
            raise ValueError("a prompt of no tokens; give at least one")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens} must be at least 1")
        if "" in self.stop:
            raise ValueError("an empty stop string would end every answer at once; leave it out")


class Answer(NamedTuple):
    ids: list[int]
    """without a stop id that ended it; the tokens of a stop string are among them"""
    text: str
    finish_reason: Literal["stop", "length"]
    """stop: by a stop id or a stop string; length: max_new_tokens, or no position left"""


class Event(NamedTuple):
    """What a step brought for one request: a piece of text, and the answer if it is complete."""

    key: int
    text: str
    answer: Answer | None


@dataclass(eq=False)
class Active:
    """A request that waits, runs, or was answered and is kept for its beginning."""

    key: int
    request: Request
    stream: TextStream
    ids: list[int]
    """of the prompt and the answer so far"""
    last: int
    """no more than so many ids; as many places of the cache are its own"""
    start: int = 0
    """the first of them"""
    known: int = 0
    """ids whose keys and values are in the cache"""
    seen_V: Tensor | None = None
    """bool: ids that the repetition penalty counts for"""

    def chunk(self, count: int) -> Chunk:
        return Chunk(self.ids[self.known : self.known + count], self.known, self.start)


def cache_bytes(gib: float, device: torch.device) -> int:
    """Memory for keys and values: as stated, or, for 0, four fifths of what is free on a GPU, 2 GiB on a CPU. What is
    left is for activations: a step of 4,096 tokens of Llama-3.1-8B should take 0.5 GiB, by its shapes.
    """
    if gib:
        return int(gib * 2**30)
    if device.type == "cpu":
        return 2 * 2**30
    torch.cuda.empty_cache()  # what a model before this one has left with PyTorch is free, too
    return torch.cuda.mem_get_info(device)[0] * 4 // 5


class Generator:
    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        stop_ids: Iterable[int] = (),
        *,
        memory: int = 2**30,
        max_sequences: int = 64,
        step_tokens: int = 4096,
        keep_prefixes: bool = False,
        cuda_graphs: bool = True,
    ):
        """`memory`: bytes for keys and values. `step_tokens`: most tokens of a step, which bounds its activations.
        `keep_prefixes`: keys and values of requests that were answered or cancelled stay until their room is needed,
        and a prompt that begins as one of these does is read from there on: for a chat.
        """
        self.cached = CachedModel(model, memory, max_sequences * model.config.max_positions, cuda_graphs)
        self.shape, self.device = model.config, self.cached.device
        self.tokenizer, self.stop_ids = tokenizer, frozenset(stop_ids)
        self.max_sequences, self.step_tokens, self.keep_prefixes = max_sequences, step_tokens, keep_prefixes
        if not 1 <= max_sequences <= step_tokens:
            raise ValueError(
                f"max_sequences = {max_sequences}, step_tokens = {step_tokens}: expected at least one sequence, and a "
                f"token in a step for each"
            )
        self.waiting: deque[Active] = deque()
        self.running: list[Active] = []
        self.kept: list[Active] = []  # the longest unused first
        self.keys = 0

    # ---- requests

    def check(self, request: Request) -> int:
        """-> the most tokens it can come to have, prompt and answer. Raises ValueError if it can never be answered."""
        length, most, places = len(request.prompt), self.shape.max_positions, self.cached.places
        if length >= most:
            raise ValueError(f"a prompt of {length:,} tokens: the model knows {most:,} positions; shorten it")
        last = min(length + request.max_new_tokens, most)
        if last > places:
            gib = last * place_bytes(self.shape, self.cached.dtype) / 2**30
            raise ValueError(
                f"a prompt of {length:,} tokens and an answer of up to {last - length:,} take {gib:.3g} GiB, and the "
                f"cache has room for {places:,} tokens in all; give it more memory, or ask for shorter answers"
            )
        bad = next((id for id in request.prompt if not 0 <= id < self.shape.vocab_size), None)
        if bad is not None:
            raise ValueError(f"token id {bad}: the model has {self.shape.vocab_size:,}; take its own tokenizer")
        return last

    def submit(self, request: Request) -> int:
        """Queue a request; -> the key of its events. Raises ValueError as `check` does."""
        last, stream = self.check(request), TextStream(self.tokenizer, request.stop)
        self.keys += 1
        self.waiting.append(Active(self.keys, request, stream, list(request.prompt), last))
        return self.keys

    def cancel(self, key: int) -> None:
        """Answer a request no further, whether it waits or runs."""
        self.waiting = deque(active for active in self.waiting if active.key != key)
        for active in [active for active in self.running if active.key == key]:
            self.leave(active)

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Answer]]:
        """(number in the order of `requests`, answer) as they are completed; requests are taken as they are needed.
        Nobody else may submit meanwhile. Ended early, it cancels what it has begun.
        """
        numbers, upcoming = {}, enumerate(requests)
        try:
            while True:
                while len(self.waiting) < self.max_sequences and (item := next(upcoming, None)):
                    numbers[self.submit(item[1])] = item[0]
                if not self.waiting and not self.running:
                    return
                for event in self.step():
                    if event.answer:
                        yield numbers.pop(event.key), event.answer
        finally:
            for key in numbers:
                self.cancel(key)

    # ---- room in the cache

    def admit(self) -> None:
        """Begin waiting requests, in order, as long as there is room for them."""
        while self.waiting and len(self.running) < self.max_sequences:
            active = self.waiting[0]
            prefix, length = self.longest_prefix(active)
            while (start := self.room(active.last)) is None and self.kept:
                self.kept.pop(0)
            if start is None:
                return
            self.waiting.popleft()
            active.start, active.known = start, length
            if prefix and prefix.start != start:
                self.cached.copy(prefix.start, start, length)
            if active.request.sampling.repetition_penalty != 1:
                active.seen_V = torch.zeros(self.shape.vocab_size, dtype=torch.bool, device=self.device)
                active.seen_V[active.ids] = True
            self.running.append(active)

    def room(self, size: int) -> int | None:
        """The first place of the first free run of so many."""
        start = 1
        for active in sorted((*self.running, *self.kept), key=lambda active: active.start):
            if active.start - start >= size:
                return start
            start = active.start + active.last
        return start if self.cached.places + 1 - start >= size else None

    def leave(self, active: Active) -> None:
        """A running request makes room, but for what is kept of it."""
        self.running.remove(active)
        if self.keep_prefixes and active.known:
            active.last = active.known
            self.kept.append(active)

    def longest_prefix(self, active: Active) -> tuple[Active | None, int]:
        """The kept request with which a prompt shares the longest beginning, and its length in tokens.

        It becomes the last to make room. If it must, it still is where it was until the prompt has taken that over: a
        chat that grows needs no second place.
        """

        def shared(kept: Active) -> int:
            most = min(kept.known, len(active.ids) - 1)  # the last token is read in any case, for what follows it
            return next((i for i in range(most) if kept.ids[i] != active.ids[i]), most)

        best = max(self.kept, key=shared, default=None)
        if best is None or not (length := shared(best)):
            return None, 0
        self.kept.remove(best)
        self.kept.append(best)
        return best, length

    # ---- a step

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Begin what there is room for, and put a step of tokens through the model."""
        self.admit()
        room, taking = self.step_tokens, []
        for active in sorted(self.running, key=lambda active: len(active.ids) - active.known > 1):  # answers first
            if count := min(room, len(active.ids) - active.known):
                taking.append((active, count))
                room -= count
        if not taking:
            return []
        logits_SV = self.cached.next_logits([active.chunk(count) for active, count in taking])
        for active, count in taking:
            active.known += count
        whole = [i for i, (active, _) in enumerate(taking) if active.known == len(active.ids)]
        if not whole:
            return []
        going_on = [taking[i][0] for i in whole]
        ids = self.sample(logits_SV if len(whole) == len(taking) else logits_SV[whole], going_on)
        return [self.add(active, id) for active, id in zip(going_on, ids, strict=True)]

    def sample(self, logits_SV: Tensor, batch: list[Active]) -> list[int]:
        """The next token of each request."""
        configs = [active.request.sampling for active in batch]
        logits_SV = logits_SV.float()
        for logits_V, active, config in zip(logits_SV, batch, configs, strict=True):
            if active.seen_V is not None:
                logits_V.copy_(penalised(logits_V, active.seen_V, config.repetition_penalty))
        best_S, ids_S = logits_SV.max(-1)  # a NaN is the greatest
        if drawn := [i for i, config in enumerate(configs) if config.temperature]:
            numbers = [uniform(configs[i].seed, batch[i].request.number, len(batch[i].stream.ids)) for i in drawn]
            ids_S[drawn] = draw(distribution(logits_SV[drawn], [configs[i] for i in drawn]), numbers)
        ids = torch.where(best_S.isfinite(), ids_S, -1).tolist()  # the one wait for the GPU
        if min(ids) < 0:
            raise ValueError("the model's logits are not finite; its weights are damaged")
        for id, active in zip(ids, batch, strict=True):
            if active.seen_V is not None:
                active.seen_V[id] = True
        return ids

    def add(self, active: Active, id: int) -> Event:
        """Take the next token of an answer; a request that is complete leaves the batch."""
        text, reason = "", None
        if id in self.stop_ids and not active.request.ignore_stop_ids:
            reason = "stop"
        else:
            active.ids.append(id)
            text = active.stream.add(id)
            if active.stream.stopped:
                reason = "stop"
            elif len(active.ids) == active.last:
                reason = "length"
        if not reason:
            return Event(active.key, text, None)
        text += active.stream.end()
        self.leave(active)
        return Event(active.key, text, Answer(active.stream.ids, active.stream.text, reason))
