"""A request to a generator, its answer, and the events on the way."""

from collections.abc import Sequence
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

    def __post_init__(self):
        if not self.prompt:
            raise ValueError("a prompt of no tokens; give at least one")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens} must be at least 1")
        if "" in self.stop:
            raise ValueError("an empty stop string would end every answer at once; leave it out")


class Answer(NamedTuple):
    """A model's answer to one request."""

    ids: list[int]
    """Token ids, with those of a stop string that ended the answer, but without a stop id."""
    text: str
    """The answer, without a stop string."""
    finish_reason: Literal["stop", "length"]
    """Why the answer ended: at a stop id or a stop string (stop), or at `max_new_tokens` or the last position (length).
    """


class Event(NamedTuple):
    """The progress of one request in one step."""

    request_id: int
    """The id that `Generator.submit` returned."""
    text: str
    """The text by which the answer grew."""
    answer: Answer | None
    """The whole answer, once it is complete."""
