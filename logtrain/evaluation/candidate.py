"""A model in an evaluation: the questions as it sees them, and how it comes to answer.

Its files are opened at once, its weights read only when it is its turn.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from logtrain.data.questions import Question
from logtrain.evaluation.answers import Answered, fingerprint
from logtrain.evaluation.remote import RemoteRequest, Server
from logtrain.generation.config import SamplingConfig
from logtrain.generation.generator import Generator
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Request
from logtrain.model import hf


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How all contestants are asked."""

    max_new_tokens: int = 1024
    """An answer is cut after so many tokens; the report says how many were."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, beside the model's own stop tokens."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


class Contestant:
    """prompts: token ids of each question. digest: of all that decides its answers to them, as far as it is here."""

    def __init__(self, name: str, path: str, template: str, date: str, local: bool = True):
        """Meets what is wrong with the model's files before any model has answered. On a server there is only its name:
        of the folder tokenizer and template are read, and config.json if there is one.
        """
        self.name, self.path = name, Path(path)
        self.folder = folder = ModelFolder(self.path, template, date)
        if local:
            self.max_positions = folder.shape.max_positions
        else:
            facts = hf.read_json(config) if (config := folder.base / "config.json").exists() else {}
            self.max_positions = facts.get("max_position_embeddings") or math.inf
        self.tokenizer, self.template = folder.tokenizer, folder.template
        if local:
            folder.open_weights()
        self.stop_ids = folder.answer_ends
        found = hashlib.sha256(folder.digest().encode() if local else b"")
        found.update(f"{sorted(self.stop_ids)} {self.template.sha256}".encode())
        for file in self.tokenizer.files:
            found.update(file.read_bytes())
        self.digest = found.hexdigest()

    def read(self, questions: Sequence[Question], data: str) -> None:
        """`data`: where the questions are from, for errors."""
        self.questions, self.data, self.prompts = questions, data, []
        for question in questions:
            try:
                self.prompts.append(self.template.prompt(question.turns))
            except ValueError as error:
                raise ValueError(f"{data} row {question.row}: {error}") from None
        self.fingerprints = [fingerprint(prompt) for prompt in self.prompts]

    def too_long(self, max_new_tokens: int) -> dict[int, str]:
        """Questions that the model has not enough positions for -> what is wrong."""
        most = self.max_positions
        return {
            i: f"{self.data} row {self.questions[i].row}: a prompt of {len(prompt):,} tokens and an answer of up to "
            f"{max_new_tokens:,}, but {self.name} knows {most:,} positions"
            for i, prompt in enumerate(self.prompts)
            if len(prompt) + max_new_tokens > most
        }

    def answers(self, numbers: Sequence[int], generator: Generator, asking: Asking) -> Iterator[Answered]:
        """Answers to questions by number, as they come. `generator`: of this model."""

        def requests() -> Iterator[Request]:
            for number in numbers:
                request = Request(
                    prompt=self.prompts[number],
                    max_new_tokens=asking.max_new_tokens,
                    sampling=asking.sampling,
                    number=number,
                    stop=asking.stop,
                )
                try:
                    generator.check(request)
                except ValueError as error:
                    raise ValueError(f"{self.data} row {self.questions[number].row}: {error}") from None
                yield request

        for i, answer in generator.run(requests()):
            yield self.answered(numbers[i], answer.text, len(answer.ids), answer.finish_reason)

    def remote_answers(self, numbers: Sequence[int], server: Server, asking: Asking) -> Iterator[Answered]:
        """The same by a server, which knows the model by its name here."""
        requests = (
            RemoteRequest(
                ids=self.prompts[n],
                turns=self.questions[n].turns,
                max_new_tokens=asking.max_new_tokens,
                sampling=asking.sampling,
                number=n,
                stop=asking.stop,
                stop_ids=self.stop_ids,
            )
            for n in numbers
        )
        for i, answer in server.answers(self.name, requests):
            yield self.answered(numbers[i], answer.text, answer.tokens, answer.finish_reason)

    def answered(self, number: int, output: str, tokens: int | None, finish_reason: str) -> Answered:
        prompt = self.prompts[number]
        return Answered(number, self.digest, self.fingerprints[number], len(prompt), output, tokens, finish_reason)
