"""What a generator is asked, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from logtrain.generation.config import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and how it is to be answered. Raises ValueError for what can never be answered by any model."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    max_new_tokens: int = 1024
    """An answer ends after so many tokens, or where the model knows no more positions."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    number: int = 0
    """Requests with the same seed and different numbers draw independently of each other."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer; they are not part of it."""
    ignore_stop_ids: bool = False
    """No stop id ends the answer (for measurements)."""

    def __post_init__(self):
        if not self.prompt:
            raise ValueError("a prompt of no tokens; give at least one")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens} must be at least 1")
        if "" in self.stop:
            raise ValueError("an empty stop string would end every answer at once; leave it out")


class Answer(NamedTuple):
    """What a model has said to one request."""

    ids: list[int]
    """without a stop id that ended it; the tokens of a stop string are among them"""
    text: str
    finish_reason: Literal["stop", "length"]
    """stop: by a stop id or a stop string; length: max_new_tokens, or no position left"""


class Event(NamedTuple):
    """What a step brought for one request."""

    request_id: int
    text: str
    """the piece of the answer that became text"""
    answer: Answer | None
    """the whole answer, once it is complete"""
