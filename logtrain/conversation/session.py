"""A conversation with a model: its turns, the log that goes with the next question, and answers as they come.

    conversation = Conversation(generator, template, sampling=SamplingConfig(), max_new_tokens=1024)
    conversation.attach(read_log("app.log"))
    for exchange in conversation.ask(conversation.task("cause")): print(exchange.piece, end="")

A question with a log is the question, a line end, and the log's lines: how prepare writes an instruction and its input.
"""

import itertools
import json
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from logtrain.data.log import Log
from logtrain.generation.generator import Event, Generator, Request
from logtrain.generation.sampling import SamplingConfig
from logtrain.text.chat_template import ChatTemplate, Turn

TASKS = tomllib.loads((Path(__file__).parent / "tasks.toml").read_text(encoding="utf-8"))
LONGEST_TASK = max((task["prompt"].strip() for task in TASKS.values()), key=len)
SAVED_AS = (".json", ".jsonl", ".ndjson")  # what prepare reads rows from


@dataclass
class Exchange:
    """A question and its answer, as far as it has come."""

    prompt_tokens: int
    reused: int
    """tokens of the prompt that were in the cache"""
    read: int
    """tokens of the prompt that are in the cache by now"""
    piece: str = ""
    """text that the last step brought"""
    text: str = ""
    answer_tokens: int = 0
    end: Literal["stop", "length", "cut"] = "cut"
    """why the answer ended: by itself, at max_new_tokens, or because it was stopped"""
    began: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    """when the first token came; 0: none has"""
    last: float = 0.0

    def add(self, event: Event) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.piece, self.text = event.text, self.text + event.text
        self.end = event.answer.finish_reason if event.answer else "cut"
        self.answer_tokens += self.end != "stop"

    def __str__(self) -> str:
        parts = [f"{self.prompt_tokens:,} prompt tokens ({self.reused:,} reused), {self.answer_tokens:,} answer tokens"]
        if self.answer_tokens > 1 and self.last > self.first:
            parts.append(f"{(self.answer_tokens - 1) / (self.last - self.first):.1f} tokens/s")
        if self.first:
            parts.append(f"{self.first - self.began:.2f} s to the first")
        return ", ".join(parts)


def user_turn(question: str, log: Log | None) -> Turn:
    return Turn("user", f"{question}\n{log.text}" if log else question)


class Conversation:
    """system: what the model is told first, "" for nothing. turns: of user and assistant, in turn; none is blank.
    log: goes with the next question.
    """

    def __init__(
        self,
        generator: Generator,
        template: ChatTemplate,
        *,
        sampling: SamplingConfig,
        max_new_tokens: int,
        system: str = "",
    ):
        self.generator, self.template, self.tokenizer = generator, template, generator.tokenizer
        self.sampling, self.max_new_tokens, self.system = sampling, max_new_tokens, system.strip()
        positions, places = generator.shape.max_positions, generator.cached.places
        self.room = min(positions, places)
        whose = "the model's context" if positions <= places else "the cache (--memory)"
        self.too_many = f"too many for {whose} of {self.room:,}, with an answer of up to {max_new_tokens:,}"
        if max_new_tokens >= self.room:
            raise ValueError(f"max_new_tokens = {max_new_tokens:,} fills {whose} of {self.room:,}; make it smaller")
        self.asked = 0
        self.reset()

    def reset(self) -> None:
        """Forget what was said and the log; a later answer draws anew all the same."""
        self.turns: list[Turn] = []
        self.log: Log | None = None
        self.has_log = False  # among the turns
        self.cut = 0  # answers that did not end by themselves

    @property
    def all_turns(self) -> list[Turn]:
        return [*([Turn("system", self.system)] if self.system else []), *self.turns]

    # ---- the log

    def attach(self, log: Log) -> int:
        """Let a log go with the next question: -> its length in tokens. Raises ValueError if it leaves no room for the
        longest task and an answer.
        """
        prompt = self.prompt(LONGEST_TASK, log)
        tokens = len(prompt) - len(self.prompt(LONGEST_TASK, None))
        if (over := self.over(prompt)) > 0:
            count = self.fitting(log, tokens - over)
            last = log.first + len(log.lines) - 1
            fits = f"lines {last - count + 1}-{last} fit" if count else f"not one of them fits; {self.remedy}"
            what = f"{log.path}: {len(log.lines):,} lines, {tokens:,} tokens"
            raise ValueError(f"{what}, {over:,} {self.too_many}; {fits}")
        self.log = log
        return tokens

    def fitting(self, log: Log, room: int) -> int:
        """How many of a log's last lines would fit; `room`: tokens, nearly."""
        lengths = (len(self.tokenizer.encode(f"{line}\n")) for line in reversed(log.lines))
        count = sum(1 for _ in itertools.takewhile(lambda total: total <= room, itertools.accumulate(lengths)))
        while count and self.over(self.prompt(LONGEST_TASK, log._replace(lines=log.lines[-count:]))) > 0:
            count -= 1 + count // 50
        return max(count, 0)

    def task(self, name: str) -> str:
        """The question of a task. Raises ValueError if there is no log to ask it about."""
        if not self.log and not self.has_log:
            raise ValueError(f"/{name}: no log to ask about; attach one with /log FILE")
        return TASKS[name]["prompt"].strip()

    # ---- answers

    def prompt(self, question: str, log: Log | None) -> list[int]:
        return self.template.prompt([*self.all_turns, user_turn(question, log)])

    def over(self, prompt: list[int]) -> int:
        """Tokens of a prompt and its answer beyond what there is room for."""
        return len(prompt) + self.max_new_tokens - self.room

    @property
    def remedy(self) -> str:
        begin = "/reset begins anew, /save FILE keeps what was said" if self.turns else "shorten it"
        return f"{begin}, or start with a smaller --max_new_tokens"

    def ask(self, question: str) -> Iterator[Exchange]:
        """An answer, step by step: the same object after each, before the first too. Closing the iterator stops the
        answer, and the conversation has it as far as it has come. A question without an answer is not part of it.

        Raises ValueError if question and answer may not fit; then nothing has changed.
        """
        log, prompt = self.log, self.prompt(question, self.log)
        if (over := self.over(prompt)) > 0:
            raise ValueError(f"{len(prompt):,} tokens, {over:,} {self.too_many}; {self.remedy}")
        request = Request(prompt=prompt, max_new_tokens=self.max_new_tokens, sampling=self.sampling, number=self.asked)
        self.asked += 1
        key = self.generator.submit(request)
        self.generator.admit()
        (active,) = self.generator.running
        assert active.key == key, "one answer at a time"
        exchange = Exchange(len(prompt), active.known, active.known)
        try:
            yield exchange
            while exchange.end == "cut":
                exchange.piece = ""
                for event in self.generator.step():
                    exchange.add(event)
                exchange.read = min(active.known, len(prompt))
                yield exchange
        finally:
            self.generator.cancel(key)
            if exchange.text.strip():
                self.turns += [user_turn(question, log), Turn("assistant", exchange.text)]
                self.has_log, self.log = self.has_log or log is not None, None
                self.cut += exchange.end != "stop"

    # ---- files

    def save(self, path: str) -> str:
        """Write the conversation as a row that `logtrain.prepare --format messages` reads; -> what was written. Raises
        ValueError, and never writes over a file.
        """
        file = Path(path).expanduser()
        if not self.turns:
            raise ValueError("nothing to save: no question has been answered")
        if file.suffix.lower() not in SAVED_AS:
            raise ValueError(f"{path}: prepare would not read it; name it {', '.join(SAVED_AS)}")
        row = json.dumps({"messages": [turn._asdict() for turn in self.all_turns]}, ensure_ascii=False)
        try:
            with open(file, "x", encoding="utf-8") as out:
                try:
                    out.write(f"{row}\n")
                    out.flush()
                except BaseException:
                    file.unlink()
                    raise
        except OSError as error:
            exists = isinstance(error, FileExistsError)
            raise ValueError(f"{path}: {'exists already; choose another name' if exists else error.strerror}") from None
        return f"{len(self.turns) // 2:,} answers" + (f", {self.cut:,} of them cut short" if self.cut else "")
