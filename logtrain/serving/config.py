"""The settings of the server. Nothing here imports torch, so that `--help` answers at once."""

import os
from dataclasses import dataclass, field
from typing import Annotated

from logtrain.core.kinds import NONE_BY_DEFAULT, Config
from logtrain.core.location import FILE, MODEL
from logtrain.text.config import DATE, check_date

API_KEY = "LOGTRAIN_API_KEY"  # environment variable
NAME_MARKS = "._-/"


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Config):
    """Answer requests of OpenAI's API with a model of this machine, and serve a page to talk to it."""

    model: Annotated[str, MODEL]
    """Hugging Face folder of the model, or of an adapter in PEFT's format."""
    name: str = ""
    """What requests call the model. Empty: the name of its folder."""
    adapters: Annotated[tuple[str, ...], NONE_BY_DEFAULT, MODEL] = ()
    """NAME=DIR of each adapter of the model that requests may name instead of it, in PEFT's format."""
    host: str = "127.0.0.1"
    """Address to listen at. 127.0.0.1: this machine alone; 0.0.0.0: every network that it is in."""
    port: int = 8000
    """Port to listen at. 0: any that is free."""
    api_key: str = field(default_factory=lambda: os.environ.get(API_KEY, ""))
    """Key that requests must bring. Empty: none. Others see a flag in the list of processes; the environment variable
    LOGTRAIN_API_KEY is the same."""
    cors: Annotated[tuple[str, ...], NONE_BY_DEFAULT] = ()
    """Origins of pages that may ask from a browser, as https://chat.example.org; * is any."""
    devices: Annotated[tuple[str, ...], NONE_BY_DEFAULT] = ()
    """Where the model is loaded, by one worker process each: cuda:0, cuda:1, cpu. None given: every GPU, or the CPU."""
    memory: float = 0.0
    """GiB for the cache of keys and values of a worker. 0: on a GPU four fifths of what is free, on a CPU 2."""
    max_sequences: int = 32
    """The most answers that a worker generates at once, as far as the memory allows."""
    step_tokens: int = 0
    """The most tokens of a step; running answers wait for those of prompts. 0: 4096 on a GPU, 512 on a CPU."""
    max_new_tokens: int = 1024
    """The most tokens of an answer to a request that does not say."""
    max_queue: int = 256
    """The most answers that wait for a place; further requests are told to come later."""
    deadline: float = 600.0
    """Seconds in which an answer must be complete."""
    max_body: float = 8.0
    """The most MiB of a request."""
    template: Annotated[str, FILE] = ""
    """A jinja file to use instead of the model's own chat template."""
    date: str = DATE
    """The date that is given to a chat template that asks for today's."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("max_sequences", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        for name in ("memory", "step_tokens", "max_queue"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)} must be a finite number >= 0")
        for name in ("deadline", "max_body"):
            if not 0 < getattr(self, name) < 1e6:
                raise ValueError(f"{name} = {getattr(self, name)} must be above 0 and below a million")
        if not 0 <= self.port < 65536:
            raise ValueError(f"port = {self.port} is outside 0 to 65535")
        if self.step_tokens and self.step_tokens < self.max_sequences:
            raise ValueError(
                f"step_tokens = {self.step_tokens} is less than max_sequences = {self.max_sequences}: an answer takes "
                f"one of every step"
            )
        if not self.api_key.isascii() or any(char.isspace() for char in self.api_key):
            raise ValueError("api_key: expected ASCII characters without spaces, for HTTP has no others in a header")
        check_name("name", self.name or "model")
        check_date(self.date)
        assert self.adapter_paths is not None

    @property
    def adapter_paths(self) -> dict[str, str]:
        """{NAME: DIR} of the adapters. Raises ValueError for anything else."""
        paths: dict[str, str] = {}
        for pair in self.adapters:
            name, _, path = pair.partition("=")
            if not path or name in paths:
                raise ValueError(f"adapters: {pair!r}: expected NAME=DIR, each name once")
            check_name("adapters", name)
            paths[name] = path
        return paths


def check_name(key: str, name: str) -> None:
    """Raises ValueError unless a model's name is of letters, digits and NAME_MARKS: it is shown in many places."""
    if not name or not all((c.isascii() and c.isalnum()) or c in NAME_MARKS for c in name):
        raise ValueError(f"{key}: {name!r}: expected letters, digits and {NAME_MARKS}")
