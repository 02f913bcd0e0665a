"""A teacher that is a model of a folder, on this machine."""

import time
from typing import Any

import torch

from logtrain.generation.generator import Generator
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Request
from logtrain.synthesis.config import SynthesiseConfig
from logtrain.synthesis.teacher import MAX_TEXT, Ask, Reply, Trouble


class LocalTeacher:
    """The model, which answers many requests at once."""

    def __init__(self, config: SynthesiseConfig):
        """Loads it. Raises ValueError for a folder that is no model, and where the memory is too small."""
        self.config, self.concurrency = config, config.concurrency
        self.folder, device = (
            ModelFolder(config.model, config.template),
            torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        )
        self.generator: Generator = self.folder.load(device, config.concurrency).generator(config.memory)
        self.asks: dict[int, Ask] = {}
        self.refused: list[tuple[Ask, Reply | Trouble]] = []

    def facts(self) -> dict[str, Any]:
        """The folder, and a digest of its weights."""
        return {"kind": "folder", "name": self.config.model, "digest": self.folder.digest()}

    def prompt(self, ask: Ask) -> list[int]:
        """Token ids."""
        return self.folder.template.prompt(ask.turns)

    def most_tokens(self, ask: Ask) -> int:
        """As many as there are."""
        return len(self.prompt(ask))

    def submit(self, ask: Ask) -> None:
        """Queue a request; one that the model has no room for has ended."""
        try:
            request = Request(
                prompt=self.prompt(ask),
                max_new_tokens=self.config.max_new_tokens,
                sampling=self.config.sampling,
                number=ask.number,
                json_object=bool(ask.task.schema) and self.config.json_mode != "none",
            )
            self.asks[self.generator.submit(request)] = ask
        except ValueError as error:
            self.refused.append((ask, Trouble("refused", str(error), False, False)))

    def wait(self, seconds: float) -> list[tuple[Ask, Reply | Trouble]]:
        """What a step of all has brought, or steps of so many seconds."""
        found, self.refused = self.refused, []
        until = time.monotonic() + seconds
        while self.asks and not found and time.monotonic() < until:
            for event in self.generator.step():
                if answer := event.answer:
                    ask = self.asks.pop(event.request_id)
                    reply = Reply(answer.text[:MAX_TEXT], answer.finish_reason, len(self.prompt(ask)), len(answer.ids))
                    found.append((ask, reply))
        return found
