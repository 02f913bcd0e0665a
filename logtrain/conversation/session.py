"""A conversation with a model: its turns, the log that is attached to the next question, and answers as they come.

    conversation = Conversation(generator, template, sampling=SamplingConfig(), max_new_tokens=1024)
    conversation.attach(read_log("app.log"))
    for response in conversation.ask(conversation.task_question("cause")): print(response.delta, end="")

A question with a log is the question, a line end, and the log's lines, as prepare writes an instruction and its input.
A log that does not fit is folded (folding.py), and `unfold` brings back what was left out.
"""

import json
import time
from collections import abc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from logtrain.conversation.folding import LEAST_CHARS_OF_FIT, Folded, fold
from logtrain.conversation.notable import notable
from logtrain.conversation.tasks import LONGEST_PROMPT, TASKS
from logtrain.data.log import Log, line_range
from logtrain.generation.config import SamplingConfig
from logtrain.generation.generator import Generator
from logtrain.generation.request import Event, Request
from logtrain.text.chat_template import ChatTemplate, Turn

SAVED_AS = (".json", ".jsonl", ".ndjson")  # endings of files that prepare reads rows from
MARGIN = 8  # tokens: a log's text next to others may take some more than alone
FOLDED_SHARE = 0.6  # of the room: the rest is for answers, further questions and what is unfolded


class FoldedLog(NamedTuple):
    """A log that is folded to fit."""

    log: Log
    folded: Folded
    show: list[tuple[int, int]]
    """numbers of the first and the last of lines that were asked for"""

    @property
    def path(self) -> str:
        """The file, as it was given."""
        return self.log.path

    @property
    def text(self) -> str:
        """What goes with the question."""
        return self.folded.text


@dataclass
class Response:
    """An answer as far as it has come. Times are in seconds of `time.perf_counter`."""

    prompt_tokens: int
    """Tokens of the prompt."""
    reused_tokens: int
    """Tokens of the prompt that were in the cache before."""
    cached_tokens: int
    """Tokens of the prompt that are in the cache by now."""
    delta: str = ""
    """Text by which the answer grew in the last step."""
    text: str = ""
    """Text of the answer so far."""
    answer_tokens: int = 0
    """Tokens of the answer so far."""
    finish_reason: Literal["stop", "length"] | None = None
    """Why the answer ended: by itself (stop) or at `max_new_tokens` (length). None while it goes on, or if it was
    stopped.
    """
    started: float = field(default_factory=time.perf_counter)
    """Time of the question."""
    first_token: float = 0.0
    """Time of the first token; 0 before it."""
    last_token: float = 0.0
    """Time of the last token; 0 before the first."""

    def add(self, event: Event) -> None:
        """Add the text of an event, of which a step may bring several."""
        self.last_token = time.perf_counter()
        self.first_token = self.first_token or self.last_token
        self.delta, self.text = self.delta + event.text, self.text + event.text
        self.finish_reason = event.answer.finish_reason if event.answer else None
        self.answer_tokens += self.finish_reason != "stop"

    def __str__(self) -> str:
        reused, seconds = f"({self.reused_tokens:,} reused)", self.last_token - self.first_token
        parts = [f"{self.prompt_tokens:,} prompt tokens {reused}, {self.answer_tokens:,} answer tokens"]
        if self.answer_tokens > 1 and seconds > 0:
            parts.append(f"{(self.answer_tokens - 1) / seconds:.1f} tokens/s")
        if self.first_token:
            parts.append(f"{self.first_token - self.started:.2f} s to the first")
        return ", ".join(parts)


def user_turn(question: str, log: Log | FoldedLog | None) -> Turn:
    """The turn of a question, with the log that is attached to it."""
    return Turn("user", f"{question}\n{log.text}" if log else question)


class Conversation:
    """A conversation of one user with a model. system: the system prompt, "" for none. turns: the turns of user and
    assistant, alternately; none is blank. log: the log that is attached to the next question. context_size: the tokens
    that the model's context, and its cache, have room for.
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
        """`generator`: one with `keep_prefixes`; otherwise the whole conversation is computed anew for every question.
        `max_new_tokens`: the most tokens of an answer. Raises ValueError if these leave no room for a question.
        """
        self.generator, self.template, self.tokenizer = generator, template, generator.tokenizer
        self.sampling, self.max_new_tokens, self.system = sampling, max_new_tokens, system.strip()
        positions, slots = generator.shape.max_positions, generator.scheduler.num_slots
        self.context_size = min(positions, slots)
        whose = "the model's context" if positions <= slots else "the cache (--memory)"
        self.too_many = f"too many for {whose} of {self.context_size:,}, with an answer of up to {max_new_tokens:,}"
        if max_new_tokens >= self.context_size:
            raise ValueError(
                f"max_new_tokens = {max_new_tokens:,} fills {whose} of {self.context_size:,}; make it smaller"
            )
        self.num_asked = 0
        self.reset()

    def reset(self) -> None:
        """Forget the turns and the log. The numbers of requests go on, so a repeated question draws anew."""
        self.turns: list[Turn] = []
        self.log: Log | FoldedLog | None = None
        self.last_folded: FoldedLog | None = None  # the one that `unfold` is about
        self.has_log = False  # whether one of the turns has a log
        self.num_cut = 0  # number of answers that did not end by themselves

    @property
    def all_turns(self) -> list[Turn]:
        """The turns, after that of the system if there is one."""
        return [*([Turn("system", self.system)] if self.system else []), *self.turns]

    # ---- the log

    def attach(self, log: Log) -> str:
        """Attach a log to the next question, folded if it does not fit with the longest task and an answer; -> its size
        in words. Raises ValueError if not even a folded log fits.
        """
        alone = len(self.prompt(LONGEST_PROMPT, None))
        room = self.context_size - self.max_new_tokens - alone
        if len(log.text) <= room * LEAST_CHARS_OF_FIT and self.excess(prompt := self.prompt(LONGEST_PROMPT, log)) <= 0:
            self.log = log
            return f"{len(log.lines):,} lines, {len(prompt) - alone:,} tokens"
        self.log = self.last_folded = self.fold(log, [])
        return str(self.last_folded.folded)

    def fold(self, log: Log, show: list[tuple[int, int]]) -> FoldedLog:
        """A log folded to the room that the longest task and an answer leave. Raises ValueError if there is too little
        for it, with the lines of `show` whole.
        """
        room = self.context_size - self.max_new_tokens - len(self.prompt(LONGEST_PROMPT, None)) - MARGIN
        before = self.last_folded
        seen = before.folded.seen if before and before.log is log else notable(log.lines)
        for share in (FOLDED_SHARE, 1.0):
            try:
                folded = fold(log.lines, int(share * room), self.count_tokens, first=log.first, show=show, seen=seen)
                break
            except ValueError as error:
                if share == 1:
                    raise ValueError(f"{log.path}: {error}; {self.remedy}") from None
        return FoldedLog(log, folded, show)

    def count_tokens(self, text: str) -> int:
        """The number of tokens of a text."""
        return len(self.tokenizer.encode(text))

    def unfold(self, which: str) -> tuple[list[str], str]:
        """The lines of a folded log that are asked for, T3 or 100-200, each with its number, exactly; and in words
        whether the model has them with the next question. Raises ValueError if no log is folded, or it has no such
        lines.
        """
        if self.last_folded is None:
            raise ValueError(f"/unfold {which}: no log is folded")
        log, folded, show = self.last_folded
        if which[:1] in "Tt" and which[1:].isdecimal():
            numbers = folded.numbers_of(which)
        else:
            last = log.first + len(log.lines) - 1
            wanted = line_range(which)
            start = last - wanted.count + 1 if wanted.count else wanted.first
            numbers = list(range(max(start, log.first), min(wanted.last or last, last) + 1))
        if not numbers:
            raise ValueError(f"/unfold {which}: {log.path} has lines {log.first}-{log.first + len(log.lines) - 1}")
        lines = [f"L{number} {log.lines[number - log.first]}" for number in numbers]
        try:
            if self.log is self.last_folded:
                more = [*show, *((number, number) for number in numbers)]
                self.log = self.last_folded = self.fold(log, more)
            else:
                self.attach_more(log, lines)
        except ValueError:
            return lines, "too many for the model: ask for fewer"
        return lines, "with the next question"

    def attach_more(self, log: Log, lines: list[str]) -> None:
        """Attach lines of a log that the model has been asked about to the next question, after those that are.
        Raises ValueError if they do not fit.
        """
        before = self.log.lines if isinstance(self.log, Log) else []
        more = log._replace(lines=[*before, *lines], note="")
        if self.excess(self.prompt(LONGEST_PROMPT, more)) > 0:
            raise ValueError(f"{log.path}: {len(lines):,} lines {self.too_many}")
        self.log = more

    def task_question(self, name: str) -> str:
        """The question of the task `name`. Raises ValueError if there is no log to ask it about."""
        if not self.log and not self.has_log:
            raise ValueError(f"/{name}: no log to ask about; attach one with /log FILE")
        return TASKS[name].prompt

    # ---- answers

    def prompt(self, question: str, log: Log | FoldedLog | None) -> list[int]:
        """The token ids of the conversation with one more question."""
        return self.template.prompt([*self.all_turns, user_turn(question, log)])

    def excess(self, prompt: list[int]) -> int:
        """The number of tokens by which a prompt and its answer exceed the room; negative if they fit."""
        return len(prompt) + self.max_new_tokens - self.context_size

    @property
    def remedy(self) -> str:
        """Advice for a question that does not fit, in words."""
        begin = "/reset begins anew, /save FILE keeps what was said" if self.turns else "shorten it"
        return f"{begin}, or start with a smaller --max_new_tokens"

    def ask(self, question: str) -> abc.Generator[Response, None, None]:
        """Ask a question; the same Response is yielded before the first step and after each. Closing the iterator stops
        the answer, which joins the conversation as far as it has come. A question without an answer does not join it.

        Raises ValueError if question and answer may not fit; then nothing has changed.
        """
        log, prompt = self.log, self.prompt(question, self.log)
        if (excess := self.excess(prompt)) > 0:
            raise ValueError(f"{len(prompt):,} tokens, {excess:,} {self.too_many}; {self.remedy}")
        request = Request(
            prompt=prompt, max_new_tokens=self.max_new_tokens, sampling=self.sampling, number=self.num_asked
        )
        self.num_asked += 1
        request_id = self.generator.submit(request)
        self.generator.admit()
        (state,) = self.generator.scheduler.running
        assert state.request_id == request_id, "one answer at a time"
        response = Response(len(prompt), state.num_cached, state.num_cached)
        try:
            yield response
            while response.finish_reason is None:
                response.delta = ""
                for event in self.generator.step():
                    response.add(event)
                response.cached_tokens = min(state.num_cached, len(prompt))
                yield response
        finally:
            self.generator.cancel(request_id)
            if response.text.strip():
                self.turns += [user_turn(question, log), Turn("assistant", response.text)]
                self.has_log, self.log = self.has_log or log is not None, None
                self.num_cut += response.finish_reason != "stop"

    # ---- files

    def save(self, path: str) -> str:
        """Write the conversation as a row that `logtrain.prepare --format messages` reads; -> what was written, in
        words. Raises ValueError for a file that exists, cannot be written, or would not be read, and where nothing was
        said.
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
        return f"{len(self.turns) // 2:,} answers" + (f", {self.num_cut:,} of them cut short" if self.num_cut else "")
