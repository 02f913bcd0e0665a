"""A model in an evaluation: its files, its prompts for the questions, and its answers.

Its files are opened at the start, its weights are read only when it is to answer.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from logtrain.core.untrusted import read_bytes
from logtrain.evaluation.answers import RecordedAnswer, read_answers
from logtrain.evaluation.config import AnswerConfig, ModelsConfig
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
    """The files of a model's folder, opened before its weights are read."""

    name: str
    """Name of the model in this evaluation."""
    folder: ModelFolder
    """The folder."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    template: ChatTemplate
    """The chat template that its prompts are written with."""
    max_positions: int | None
    """The most tokens of prompt and answer; None where a server's model does not say."""
    stop_ids: frozenset[int]
    """Tokens that end an answer."""
    sha256: str
    """Hash of everything that decides the answers: weights, tokenizer, template, stop tokens; of a server's model all
    but the weights.
    """


def open_model(name: str, path: str, config: ModelsConfig) -> ModelFiles:
    """Open a model's folder and check its files, so that errors are found before any model has answered. The folder of
    a server's model has only tokenizer and template, and perhaps config.json. Raises ValueError for files that are
    missing or wrong.
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
    """A model with its prompts for the questions. prompts: token ids, by number of the question."""

    def __init__(self, model: ModelFiles, question_set: QuestionSet):
        """Write the prompts. Raises ValueError for a question that the model's template cannot write."""
        self.model, self.question_set = model, question_set
        self.prompts: list[list[int]] = []
        for number, question in enumerate(question_set.questions):
            try:
                self.prompts.append(model.template.prompt(question.turns))
            except ValueError as error:
                raise ValueError(f"{question_set.where(number)}: {error}") from None
        self.prompt_sha256s = [prompt_sha256(prompt) for prompt in self.prompts]

    @property
    def name(self) -> str:
        """Name of the model in this evaluation."""
        return self.model.name

    def check_answers(self, folder: Path) -> None:
        """Raises ValueError if an answer in `folder` is another model's, or was given to another question than the one
        that has its number now. Answers beyond the number of questions (--limit was larger) are ignored.
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
        """The questions that are too long for the model's context, with an error's text for each, by number."""
        most = self.model.max_positions
        return {
            number: f"{self.question_set.where(number)}: a prompt of {len(prompt):,} tokens and an answer of up to "
            f"{max_new_tokens:,}, but {self.name} knows {most:,} positions"
            for number, prompt in enumerate(self.prompts)
            if most is not None and len(prompt) + max_new_tokens > most
        }

    def answers(self, numbers: Sequence[int], generator: Generator, config: AnswerConfig) -> Iterator[RecordedAnswer]:
        """The answers to the questions of these numbers, as they come. `generator`: one of this model. Raises
        ValueError for a question that it can never answer.
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
        """The answers of a server, as they come; the server must know the model by `name`. Raises ValueError as
        `Server.answers` does.
        """
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
        server.check_reachable()
        server.check_tokenizer(self.name, self.model.tokenizer)
        for i, answer in server.answers(self.name, requests):
            yield self.recorded(numbers[i], answer.text, answer.tokens, answer.finish_reason)

    def recorded(self, number: int, output: str, output_tokens: int | None, finish_reason: str) -> RecordedAnswer:
        """The record of an answer to the question of this number."""
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
    """Hash of the token ids of a prompt."""
    return hashlib.sha256(np.array(prompt, "<u4").tobytes()).hexdigest()


def check_recorded_answers(candidates: Sequence[Candidate], folder: Path) -> None:
    """Raises ValueError, as `Candidate.check_answers` does, if a run cannot go on with the answers in `folder`."""
    for candidate in candidates:
        candidate.check_answers(folder)


def too_long_for_any(candidates: Sequence[Candidate], config: ModelsConfig) -> dict[int, str]:
    """The questions that are too long for one of the models, with an error's text for each, by number. Raises
    ValueError if there are any and `config.too_long` is "error", and if these are all questions.
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
