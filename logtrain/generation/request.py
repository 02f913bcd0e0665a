"""A request to a generator, its answer, and the events on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from logtrain.generation.config import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt, and how it is to be answered. Raises ValueError for a request that no model could answer."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    max_new_tokens: int = 1024
    """The most tokens of the answer, which also ends where the model has no more positions."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How tokens are drawn; greedily by default."""
    number: int = 0
    """Number that, with the seed, decides the draws: requests of different numbers draw independently."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer, of which they are no part."""
    ignore_stop_ids: bool = False
    """Whether the answer goes on after a stop id, as measurements of speed need it."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end this answer beside those that end every answer of the generator."""
    adapter: int = 0
    """Which of the model's adapters answers, counted from 1; 0: the model itself."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """What is added to the logits of tokens, by their ids."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told at each token of the answer, with its own log-probability. None: no
    log-probabilities are told.
    """
    prompt_logprobs: bool = False
    """Whether log-probabilities of the prompt's tokens are told too; then all of the prompt is computed anew."""
    json_object: bool = False
    """Whether the answer is to be a JSON object, whole and nothing else."""

    def __post_init__(self):
        if not self.prompt:
            raise ValueError("a prompt of no tokens; give at least one")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens} must be at least 1")
        if "" in self.stop:
            raise ValueError("an empty stop string would end every answer at once; leave it out")


class TokenLogprob(NamedTuple):
    """The log-probability of a token by the model's logits as they are, before penalties and temperature."""

    id: int
    """The token."""
    logprob: float
    """Its natural log-probability."""
    top: list[tuple[int, float]]
    """The likeliest tokens at its place with theirs, the likeliest first."""


class Answer(NamedTuple):
    """A model's answer to one request."""

    ids: list[int]
    """Token ids, with those of a stop string that ended the answer, but without a stop id."""
    text: str
    """The answer, without a stop string."""
    finish_reason: Literal["stop", "length"]
    """Why the answer ended: at a stop id, a stop string or the end of a JSON object (stop), or at `max_new_tokens` or
    the last position (length).
    """
    reused: int = 0
    """Number of tokens of the prompt whose keys and values were in the cache before."""


class Event(NamedTuple):
    """The progress of one request by one token; a step may bring several."""

    request_id: int
    """The id that `Generator.submit` returned."""
    text: str
    """The text by which the answer grew."""
    answer: Answer | None
    """The whole answer, once it is complete."""
    logprob: TokenLogprob | None = None
    """The log-probability of the token by which the answer grew, if the request asks for it."""
    prompt_logprobs: list[TokenLogprob] | None = None
    """At the answer's first token those of the prompt's tokens from the second on, if the request asks for them."""
