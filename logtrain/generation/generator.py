"""Generates a model's answers to many requests at once; each joins the running batch as soon as there is room for it
(continuous batching).

    generator = Generator(model, tokenizer, stop_ids, memory=2**30)
    for number, answer in generator.run(Request(prompt=ids) for ids in prompts): ...

    scheduler.py     which requests run, and which slots of the cache they have
    lookup.py        draft tokens, which a step confirms or not
    kv_cache.py      the cache, and the model's step with it
    adapters.py      the adapters of a model that requests may name
    logits.py        what a request changes in its logits
    sampling.py      the next token from logits
    json_object.py   answers that are a JSON object

Shapes in names: S sequences, R rows of logits (of each sequence, and of each draft token), V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from logtrain.generation.json_object import JsonAnswer, JsonGrammar
from logtrain.generation.kv_cache import CachedModel, Scored, slot_bytes
from logtrain.generation.logits import LogitChanges, token_logprobs
from logtrain.generation.request import Answer, Event, Request, TokenLogprob
from logtrain.generation.sampling import distribution, draw, uniform
from logtrain.generation.scheduler import RequestState, Scheduled, Scheduler
from logtrain.model.llama import Llama
from logtrain.text.stream import TextStream
from logtrain.text.tokenizer import Tokenizer

DRAFT_STEP_TOKENS = 12  # at most, of a step with draft tokens on a CPU


class Generator:
    """A model that answers requests. scheduler: the requests under way. cached: the model with its cache."""

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
        drafting: bool = True,
    ):
        """`stop_ids`: tokens that end an answer. `memory`: bytes for keys and values. `max_sequences`: the most
        requests that run at once. `step_tokens`: the most tokens of a step, which bounds its activations.
        `keep_prefixes`: keep the keys and values of finished requests until their slots are needed, and reuse them for
        a prompt that begins alike, as the next question of a chat does. `cuda_graphs`: replay decoding steps on a GPU
        as CUDA graphs. `drafting`: on a CPU, give steps of few answers draft tokens, so that they may get several
        tokens at once, the same as without up to the rounding of products. Raises ValueError if `step_tokens` is less
        than `max_sequences`.
        """
        self.cached = CachedModel(model, memory, max_sequences * model.config.max_positions, cuda_graphs)
        self.shape, self.device = model.config, self.cached.device
        draft_step_tokens = DRAFT_STEP_TOKENS if drafting and self.device.type == "cpu" else 0
        self.scheduler = Scheduler(self.cached.num_slots, max_sequences, step_tokens, keep_prefixes, draft_step_tokens)
        self.tokenizer, self.stop_ids = tokenizer, frozenset(stop_ids)
        self.num_adapters = self.cached.adapters.count if self.cached.adapters else 0
        self.num_submitted = 0

    # ---- requests

    def check(self, request: Request) -> None:
        """Raises ValueError for a request that can never be answered, because it does not fit into the model's context
        or the cache, or has ids that the model does not know.
        """
        length, most, slots = len(request.prompt), self.shape.max_positions, self.scheduler.num_slots
        if length >= most:
            raise ValueError(f"a prompt of {length:,} tokens: the model knows {most:,} positions; shorten it")
        if (needed := self.max_length(request)) > slots:
            gib = needed * slot_bytes(self.shape, self.cached.dtype) / 2**30
            raise ValueError(
                f"a prompt of {length:,} tokens and an answer of up to {needed - length:,} take {gib:.3g} GiB, and the "
                f"cache has room for {slots:,} tokens in all; give it more memory, or ask for shorter answers"
            )
        bad = next((id for id in request.prompt if not 0 <= id < self.shape.vocab_size), None)
        if bad is None:
            bad = next((id for id in request.logit_bias if not 0 <= id < self.shape.vocab_size), None)
        if bad is not None:
            raise ValueError(f"token id {bad}: the model has {self.shape.vocab_size:,}; take its own tokenizer")
        if not 0 <= request.adapter <= self.num_adapters:
            raise ValueError(f"adapter {request.adapter}: the model has {self.num_adapters}")
        if request.json_object and self.json_grammar and self.max_length(request) - length < 2:
            raise ValueError("a JSON object takes at least 2 tokens; ask for a longer answer")

    def max_length(self, request: Request) -> int:
        """The most tokens that the prompt and its answer can have together."""
        return min(len(request.prompt) + request.max_new_tokens, self.shape.max_positions)

    def submit(self, request: Request) -> int:
        """Queue a request; -> its id, by which its events name it. Raises ValueError as `check` does."""
        self.check(request)
        stream, num_slots = TextStream(self.tokenizer, request.stop), self.max_length(request)
        self.num_submitted += 1
        state = RequestState(self.num_submitted, request, stream, list(request.prompt), num_slots)
        self.scheduler.waiting.append(state)
        return state.request_id

    def cancel(self, request_id: int) -> None:
        """Stop answering a request, whether it waits or runs."""
        self.scheduler.cancel(request_id)

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Answer]]:
        """(index in `requests`, answer) of each request, in the order in which answers are completed. Requests are
        taken as they are needed; no others may be submitted meanwhile. If the iteration is ended early, requests under
        way are cancelled. Raises ValueError as `check` does.
        """
        numbers, upcoming, scheduler = {}, enumerate(requests), self.scheduler
        try:
            while True:
                while len(scheduler.waiting) < scheduler.max_sequences and (item := next(upcoming, None)):
                    numbers[self.submit(item[1])] = item[0]
                if scheduler.is_idle:
                    return
                for event in self.step():
                    if event.answer:
                        yield numbers.pop(event.request_id), event.answer
        finally:
            for request_id in numbers:
                self.cancel(request_id)

    # ---- a step

    def admit(self) -> None:
        """Start waiting requests as far as there is room; a prefix that the cache has of a prompt is not computed
        again.
        """
        for state, prefix in self.scheduler.admit():
            if prefix:
                if prefix.state.first_slot != state.first_slot:
                    self.cached.copy(prefix.state.first_slot, state.first_slot, prefix.length)
                state.num_cached = state.num_reused = prefix.length

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Start waiting requests, and put the tokens of one step through the model; -> an event for each token that a
        request got, several where draft tokens were right; [] if none is under way or all prompts are still being
        read. Raises ValueError for logits that are not finite.
        """
        self.admit()
        scheduled = self.scheduler.schedule()
        if not scheduled:
            return []
        logits_RV = self.logits(scheduled)
        answered, row, events = [], 0, []
        for state, chunk in scheduled:
            certain = len(chunk.tokens) - chunk.num_drafts
            state.num_cached += certain
            if state.num_cached == len(state.ids):
                answered.append((state, row, chunk.tokens[certain:]))
            row += 1 + chunk.num_drafts
        while answered:
            rows = [row for _, row, _ in answered]
            tokens = self.sample(
                logits_RV if len(rows) == len(logits_RV) else logits_RV[rows], [state for state, *_ in answered]
            )
            confirmed = []
            for (state, row, drafts), token in zip(answered, tokens, strict=True):
                events.append(self.append(state, *token))
                if drafts and token[0] == drafts[0] and not events[-1].answer:
                    state.num_cached += 1
                    confirmed.append((state, row + 1, drafts[1:]))
            answered = confirmed
        return events

    def logits(self, scheduled: Sequence[Scheduled]) -> Tensor:
        """The logits [R, V], as `next_logits` gives them. Log-probabilities of prompts that are asked for stay on the
        requests.
        """
        scored = []
        for i, (state, chunk) in enumerate(scheduled):
            targets = state.request.prompt[chunk.num_cached + 1 :][: len(chunk.tokens)]
            if state.request.prompt_logprobs and targets:
                scored.append(Scored(i, targets, state.request.logprobs or 0))
        chunks = [chunk for _, chunk in scheduled]
        if not scored:
            return self.cached.next_logits(chunks)
        logits_SV, logprobs = self.cached.scored_logits(chunks, scored)
        for (i, *_), found in zip(scored, logprobs, strict=True):
            scheduled[i].state.prompt_logprobs += found
        return logits_SV

    def sample(self, logits_SV: Tensor, batch: Sequence[RequestState]) -> list[tuple[int, TokenLogprob | None]]:
        """The next token of each request, with its log-probability where it is asked for. Raises ValueError for logits
        that are not finite.
        """
        configs = [state.request.sampling for state in batch]
        told = [i for i, state in enumerate(batch) if state.request.logprobs is not None]
        logits_SV = logits_SV.float()
        raw_SV = logits_SV[told] if told else logits_SV[:0]  # a copy: changes are made in place
        for logits_V, state in zip(logits_SV, batch, strict=True):
            if state.changes is None:
                state.changes = self.changes(state)
            if not state.changes.are_none:
                state.changes.apply(logits_V, state.num_slots - len(state.ids))
        best_S, ids_S = logits_SV.max(-1)  # max takes a NaN for the greatest
        if drawn := [i for i, config in enumerate(configs) if config.temperature]:
            numbers = [uniform(configs[i].seed, batch[i].request.number, len(batch[i].stream.ids)) for i in drawn]
            ids_S[drawn] = draw(distribution(logits_SV[drawn], [configs[i] for i in drawn]), numbers)
        ids = torch.where(best_S.isfinite(), ids_S, -1).tolist()  # the one wait for the GPU
        if min(ids) < 0:
            raise ValueError("the model's logits are not finite; its weights are damaged")
        logprobs: list[TokenLogprob | None] = [None] * len(ids)
        if told:
            most = max(batch[i].request.logprobs or 0 for i in told)
            for i, found in zip(told, token_logprobs(raw_SV, [ids[i] for i in told], most), strict=True):
                logprobs[i] = found._replace(top=found.top[: batch[i].request.logprobs])
        return list(zip(ids, logprobs, strict=True))

    def changes(self, state: RequestState) -> LogitChanges:
        """What a request that has read its prompt changes in its logits."""
        changes = LogitChanges(state.request, state.ids, self.shape.vocab_size, self.device)
        if state.request.json_object:
            changes.json = JsonAnswer(self.json_grammar)
        return changes

    @cached_property
    def json_grammar(self) -> JsonGrammar:
        """JSON in the model's tokens. Raises ValueError where they cannot spell it."""
        return JsonGrammar(self.tokenizer, self.shape.vocab_size, self.device)

    def append(self, state: RequestState, id: int, logprob: TokenLogprob | None) -> Event:
        """Extend an answer by one token; a request that is complete leaves the batch."""
        text, reason, request, changes = "", None, state.request, state.changes
        assert changes is not None, "it has just been sampled for"
        told, state.prompt_logprobs = state.prompt_logprobs or None, []
        if (id in self.stop_ids or id in request.stop_ids) and not request.ignore_stop_ids:
            reason, logprob = "stop", None
        else:
            state.ids.append(id)
            changes.add(id)
            text = state.stream.add(id)
            if state.stream.stopped or (changes.json and changes.json.is_complete):
                reason = "stop"
            elif len(state.ids) == state.num_slots:
                reason = "length"
        if not reason:
            return Event(state.request_id, text, None, logprob, told)
        text += state.stream.end()
        self.scheduler.finish(state)
        answer = Answer(state.stream.ids, state.stream.text, reason, state.num_reused)
        return Event(state.request_id, text, answer, logprob, told)
