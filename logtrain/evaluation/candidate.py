"""A model in an evaluation: its files, the questions as it sees them, and how it comes to answer.

Its files are opened at once, its weights read only when it is its turn.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from logtrain.core.untrusted import read_bytes
from logtrain.evaluation.answers import RecordedAnswer, read_answers
from logtrain.evaluation.config import AnswerConfig, EvaluateConfig
from logtrain.evaluation.question_set import QuestionSet
from logtrain.evaluation.remote import RemoteRequest, Server
from logtrain.generation.generator import Generator
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Request
from logtrain.model import hf
from logtrain.text.chat_template import ChatTemplate
from logtrain.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder, opened, with all that is known of it before its weights are read."""

    name: str
    folder: ModelFolder
    tokenizer: Tokenizer
    template: ChatTemplate
    max_positions: int | None
    """None where a server's model does not say."""
    stop_ids: frozenset[int]
    """Tokens that end an answer."""
    sha256: str
    """Hash of all that decides the answers, as far as it is here: of a server's model all but the weights."""


def open_model(name: str, path: str, config: EvaluateConfig) -> ModelFiles:
    """Open a model's folder and check its files, so that what is wrong is met before any model has answered. Of a
    server's model the folder has only tokenizer and template, and config.json if there is one. Raises ValueError.
    """
    folder, is_local = ModelFolder(path, config.template, config.date), config.backend == "local"
    if is_local:
        max_positions = folder.shape.max_positions
    else:
        max_positions = hf.read_positions(folder.base)
    tokenizer, template, ends = folder.tokenizer, folder.template, folder.answer_ends
    if is_local:
        folder.open_weights()
    sha256 = hashlib.sha256(folder.digest().encode() if is_local else b"")
    sha256.update(f"{sorted(ends)} {template.sha256}".encode())
    for file in tokenizer.files:
        sha256.update(read_bytes(file))
    return ModelFiles(name, folder, tokenizer, template, max_positions, ends, sha256.hexdigest())


class Candidate:
    """A model with the prompts that the questions are to it."""

    def __init__(self, model: ModelFiles, question_set: QuestionSet):
        """Raises ValueError for a question that the model's template cannot write."""
        self.model, self.question_set = model, question_set
        self.prompts: list[list[int]] = []  # token ids, by number of the question
        for number, question in enumerate(question_set.questions):
            try:
                self.prompts.append(model.template.prompt(question.turns))
            except ValueError as error:
                raise ValueError(f"{question_set.where(number)}: {error}") from None
        self.prompt_sha256s = [prompt_sha256(prompt) for prompt in self.prompts]

    @property
    def name(self) -> str:
        """By which the model goes in this evaluation."""
        return self.model.name

    def check_answers(self, folder: Path) -> None:
        """Raises ValueError if an answer there is another model's, or to another question than the one of its number.
        Of more answers than questions (--limit was larger) the rest counts for nothing.
        """
        for answer in read_answers(folder, self.name).values():
            if answer.model_sha256 != self.model.sha256:
                wrong = "of another model, tokenizer or template than are there now; restore them"
            elif answer.number < len(self.prompts) and answer.prompt_sha256 != self.prompt_sha256s[answer.number]:
                row = self.question_set.questions[answer.number].row
                wrong = f"to another row {row} than the data has now; restore the data"
            else:
                continue
            raise ValueError(f"{folder}: {self.name}'s answers are {wrong}, or choose another --run")

    def too_long(self, max_new_tokens: int) -> dict[int, str]:
        """Questions that the model has not enough positions for, by number, and what is wrong."""
        most = self.model.max_positions
        return {
            number: f"{self.question_set.where(number)}: a prompt of {len(prompt):,} tokens and an answer of up to "
            f"{max_new_tokens:,}, but {self.name} knows {most:,} positions"
            for number, prompt in enumerate(self.prompts)
            if most is not None and len(prompt) + max_new_tokens > most
        }

    def answers(self, numbers: Sequence[int], generator: Generator, config: AnswerConfig) -> Iterator[RecordedAnswer]:
        """Answers to the questions of these numbers, as they come. `generator`: of this model. Raises ValueError for a
        question that it can never answer.
        """

        def requests() -> Iterator[Request]:
            for number in numbers:
                request = Request(
                    prompt=self.prompts[number],
                    max_new_tokens=config.max_new_tokens,
                    sampling=config.sampling,
                    number=number,
                    stop=config.stop,
                )
                try:
                    generator.check(request)
                except ValueError as error:
                    raise ValueError(f"{self.question_set.where(number)}: {error}") from None
                yield request

        for i, answer in generator.run(requests()):
            yield self.recorded(numbers[i], answer.text, len(answer.ids), answer.finish_reason)

    def server_answers(self, numbers: Sequence[int], server: Server, config: AnswerConfig) -> Iterator[RecordedAnswer]:
        """Answers of a server, as they come; it knows the model by its name here. Raises what `Server.answers` does."""
        requests = (
            RemoteRequest(
                ids=self.prompts[number],
                turns=self.question_set.questions[number].turns,
                max_new_tokens=config.max_new_tokens,
                sampling=config.sampling,
                number=number,
                stop=config.stop,
                stop_ids=self.model.stop_ids,
            )
            for number in numbers
        )
        for i, answer in server.answers(self.name, requests):
            yield self.recorded(numbers[i], answer.text, answer.tokens, answer.finish_reason)

    def recorded(self, number: int, output: str, output_tokens: int | None, finish_reason: str) -> RecordedAnswer:
        """An answer to the question of this number, with what it came from."""
        return RecordedAnswer(
            number=number,
            model_sha256=self.model.sha256,
            prompt_sha256=self.prompt_sha256s[number],
            prompt_tokens=len(self.prompts[number]),
            output=output,
            output_tokens=output_tokens,
            finish_reason=finish_reason,
        )


def prompt_sha256(prompt: Sequence[int]) -> str:
    """Hash of a question as a model sees it."""
    return hashlib.sha256(np.array(prompt, "<u4").tobytes()).hexdigest()


def check_recorded_answers(candidates: Sequence[Candidate], folder: Path) -> None:
    """Raises ValueError, as `Candidate.check_answers` does, if answers there are not to be gone on with."""
    for candidate in candidates:
        candidate.check_answers(folder)


def too_long_for_any(candidates: Sequence[Candidate], config: EvaluateConfig) -> dict[int, str]:
    """Questions that are too long for one of the models, by number, and why. Raises ValueError where the config has
    that an error, and where it leaves no question.
    """
    found: dict[int, str] = {}
    for candidate in candidates:
        found = candidate.too_long(config.max_new_tokens) | found
    if found and config.too_long == "error":
        first = found[min(found)]
        raise ValueError(
            f"{first} ({len(found):,} question{'s' if len(found) > 1 else ''} in all); leave them out with --too_long "
            f"skip, or lower --max_new_tokens"
        )
    if len(found) == len(candidates[0].prompts):
        raise ValueError(f"{found[min(found)]}; so it is with every question")
    return found
