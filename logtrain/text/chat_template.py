"""A chat template: turns -> text -> ids, and which of the ids are an answer.

    template = ChatTemplate.load(Tokenizer.load(folder))
    ids = template.prompt([Turn("user", "Why?")])                  what a model is to go on from
    template.check_trainable()
    ids, is_target = template.encode([Turn("user", "Why?"), Turn("assistant", "Because.")])

The template is the model's own (or `--template FILE`), rendered as transformers renders it, in jinja2's sandbox, and
the ids are those of transformers' `apply_chat_template`. Two things are different, on purpose:

The date is not today's: `strftime_now` gives one that the caller chose, so that the same input is always the same ids.

A turn's content is only text: marks are those that the template writes, and one that a turn spells (`<|eot_id|>` in a
log line) becomes the pieces of its characters (spoken.py says how it is told apart). What stands around it between two
of the template's marks is encoded as if nothing in it were one.

Any template will do to ask a model. To train on one, it must keep rules: the template writes the conversation up to
each answer, with what invites one (`add_generation_prompt`), and again with the answer: what has been added is the
answer, its end, and what else stands before the next turn (SmolLM2's line end). Each such text must begin with the one
before: a template that rewrites earlier turns is refused, for what it trains on is not what a chat shows. A token that
spans the border belongs to the answer, or the answer's first characters would not be learned.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import jinja2
import numpy as np

from logtrain.text.config import DATE, TrainOn
from logtrain.text.plain_text import Encoding
from logtrain.text.spoken import Spoken
from logtrain.text.template_sandbox import compile_template
from logtrain.text.template_source import CONFIG, find_template, named_tokens, read_config, tokenizer_file
from logtrain.text.tokenizer import Tokenizer
from logtrain.text.turns import Turn as Turn
from logtrain.text.turns import check_question, turn_name
from logtrain.text.turns import check_turns as check_turns

MAX_MARKS = 1 << 15  # for which every turn is searched; Gemma 3 has 6,415


TRIAL = [
    Turn("user", "first question"),
    Turn("assistant", "first answer"),
    Turn("user", "second question"),
    Turn("assistant", "second answer"),
]


class ChatTemplate:
    """source: the template's own text. sha256: that text's digest. where: the file that it was read from. named:
    special tokens that the template may call by a name, as bos_token.
    """

    @staticmethod
    def load(
        tokenizer: Tokenizer, file: str | Path = "", date: str = DATE, adapter: Path | None = None
    ) -> "ChatTemplate":
        """Loads the chat template in `file`, or else that of the folder of an adapter or of the tokenizer. `date`: what
        it takes for today. Raises ValueError for a template that is missing or is no jinja.
        """
        folders = [tokenizer.folder, *([adapter] if adapter else [])]
        refuse_split_marks(folders[-1] if tokenizer_file(folders[-1]) else tokenizer.folder)
        where, source = find_template(*folders, file=file)
        return ChatTemplate(tokenizer, source, date, where, named_tokens(*folders))

    def __init__(
        self,
        tokenizer: Tokenizer,
        source: str,
        date: str = DATE,
        where: str = "chat template",
        named: dict[str, str] | None = None,
    ):
        """`named`: special tokens by name, those of the tokenizer's folder if there are none given."""
        self.tokenizer, self.source, self.where = tokenizer.knowing(source), source, where
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        self.named = named_tokens(tokenizer.folder) if named is None else named
        if len(self.tokenizer.marks) > MAX_MARKS:
            raise ValueError(
                f"{tokenizer.folder}: {len(self.tokenizer.marks):,} special tokens, more than {MAX_MARKS:,}"
            )
        self.tokenizer.encode_with_spans("", spelled=True)  # which not every kind of tokenizer can
        self._mark_ids = set(self.tokenizer.marks.values())
        self._spoken = Spoken(self.tokenizer.marks)
        if date != DATE and "strftime_now" not in source:
            raise ValueError(f"{where}: never asks for the date (with strftime_now), so date = {date} has no effect")
        try:
            self._template = compile_template(source, date)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"{where}: not a jinja template: line {error.lineno}: {one_line(error)}") from None

    @cached_property
    def end_id(self) -> int | None:
        """The mark that ends an answer, where generation stops; None for a template that writes none."""
        try:
            text = self.render(TRIAL[:2])
        except ValueError:
            return None
        ending = text.rpartition(TRIAL[1].content)[2]
        return next((id for id in self._ids(ending) if id in self._mark_ids), None)

    @property
    def ends(self) -> frozenset[int]:
        """The marks that end an answer: `end_id`, if there is one."""
        return frozenset(() if self.end_id is None else (self.end_id,))

    def check_asks(self) -> None:
        """Raises ValueError for a template that does not write a question, with all that it says."""
        try:
            if TRIAL[0].content not in self.render(TRIAL[:1], add_generation_prompt=True):
                raise ValueError(f"{turn_name(TRIAL, 0)}: the chat template does not write all of its text")
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from None

    def check_trainable(self) -> int:
        """Tries the template on a small conversation, by the rules of training; returns the token that ends its
        answers. Raises ValueError for a template that breaks one.
        """
        try:
            return self._try_out()
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}; give another to train with --template FILE") from None

    def encode(self, turns: Sequence[Turn], train_on: TrainOn = "all") -> tuple[list[int], np.ndarray]:
        """Returns the ids of a conversation, and bool [ids]: whether each belongs to an answer, or, for "last", to the
        last one.

        Raises ValueError, which names the turn, for turns in another order than `check_turns` asks for and for what the
        template cannot render, or not the same at every length of the conversation.
        """
        check_turns(turns)
        turns, separator = self._as_text(turns, add_generation_prompt=False)
        text, answers = self._render_stably(turns)
        ids, spans = self._tokenize(text, separator)
        self._check_bos(ids)
        start_N, end_N = np.array(spans).T
        is_target = np.zeros(len(ids), bool)
        for start, end in answers if train_on == "all" else answers[-1:]:
            is_target |= (start_N < end) & (np.maximum(end_N, start_N + 1) > start)
        return ids, is_target

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Returns the ids of a conversation up to where the answer to its last turn begins. Raises ValueError, which
        names the turn, for turns that `check_question` refuses and for what the template cannot render.
        """
        check_question(turns)
        turns, separator = self._as_text(turns, add_generation_prompt=True)
        return self._tokenize(self.render(turns, add_generation_prompt=True), separator).ids

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """Returns the text that the template makes of the turns. Raises ValueError where the template fails."""
        messages = [turn._asdict() for turn in turns]
        try:
            text = self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.named,
            )
            text.encode()  # half a surrogate pair is no text
            return text
        except Exception as error:  # whatever Python raises for the template's expressions
            what = one_line(error)
            what = what if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {what}"
            raise ValueError(f"{turn_name(turns, len(turns) - 1)}: the chat template fails ({what})") from None

    def _as_text(self, turns: Sequence[Turn], add_generation_prompt: bool) -> tuple[Sequence[Turn], str]:
        """Returns turns in which marks that they spell stand between separators, and the separator, "" for none."""

        def render(contents: Sequence[str]) -> str:
            said = [turn._replace(content=content) for turn, content in zip(turns, contents, strict=True)]
            return self.render(said, add_generation_prompt)

        contents, separator = self._spoken.apart([turn.content for turn in turns], render)
        return [turn._replace(content=content) for turn, content in zip(turns, contents, strict=True)], separator

    def _render_stably(self, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
        """Returns the text of the conversation, and the characters [start, end) of each answer."""
        text, answers = "", []
        for i, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            invited = self.render(turns[:i], add_generation_prompt=True)
            answered = self.render(turns[: i + 1])
            for before, after, changes in ((text, invited, i - 1), (invited, answered, i)):
                if not after.startswith(before):
                    raise ValueError(
                        f"{turn_name(turns, changes)}: the chat template changes what stood before it, "
                        f"so that training on it would not be what a chat shows"
                    )
            if turn.content.strip() not in answered[len(invited) :]:
                raise ValueError(f"{turn_name(turns, i)}: the chat template does not write all of its text")
            answers.append((len(invited), len(answered)))
            text = answered
        for i, turn in enumerate(turns):
            if turn.content.strip() not in text:
                raise ValueError(f"{turn_name(turns, i)}: the chat template does not write all of its text")
        return text, answers

    def _tokenize(self, text: str, separator: str) -> Encoding:
        """Encodes a rendered text: its ids, and their spans in it. A separator is in the text, but in no token."""
        encoding = self.tokenizer.encode_with_spans(text, spelled=True)
        return self._without(separator, text, encoding) if separator and separator in text else encoding

    def _check_bos(self, ids: list[int]) -> None:
        """Raises ValueError unless a conversation begins as the tokenizer begins a document, and only there."""
        bos_id = self.tokenizer.bos_id
        if bos_id is not None and (ids[:1] != [bos_id] or ids.count(bos_id) > 1):
            raise ValueError(
                f"the chat template writes the tokenizer's bos_token {ids.count(bos_id)} times, not once, at the start"
            )

    def _without(self, separator: str, text: str, encoding: Encoding) -> Encoding:
        """Returns an encoding of `text` in which each stretch between the template's marks that holds a separator is
        encoded anew, without it; its spans are still those of the text with separators.
        """
        ids, spans = encoding

        def is_said(start: int, end: int) -> bool:
            return text[max(0, start - 1) : start] == separator == text[end : end + 1]

        borders = [i for i, id in enumerate(ids) if id in self._mark_ids and not is_said(*spans[i])]
        new_ids, new_spans = [], []
        for before, after in zip([-1, *borders], [*borders, len(ids)], strict=True):
            start = spans[before][1] if before >= 0 else 0
            end = spans[after][0] if after < len(ids) else len(text)
            if separator in text[start:end]:
                at = [i for i in range(start, end) if text[i] != separator]  # of each character that stays
                left, right = (ids[i] if 0 <= i < len(ids) else None for i in (before, after))
                clean = self.tokenizer.encode_between(text[start:end].replace(separator, ""), left, right)
                new_ids += clean.ids
                new_spans += [(at[a], at[b - 1] + 1) if b > a else (start, start) for a, b in clean.spans]
            else:
                new_ids += ids[before + 1 : after]
                new_spans += spans[before + 1 : after]
            new_ids += ids[after : after + 1]
            new_spans += spans[after : after + 1]
        return Encoding(new_ids, new_spans)

    def _ids(self, text: str) -> list[int]:
        """Returns the ids of a text of the template's own."""
        return self.tokenizer.encode_with_spans(text, spelled=True).ids

    def _try_out(self) -> int:
        """Does the work of `check_trainable`."""
        text, answers = self._render_stably(TRIAL)
        self._check_bos(self._ids(text))
        ends: list[int] = []
        for i, (start, end) in zip((1, 3), answers, strict=True):
            header, _, ending = text[start:end].partition(TRIAL[i].content)
            if header.strip():
                raise ValueError(
                    f"{turn_name(TRIAL, i)}: the chat template writes {header!r} before the answer, but not where "
                    f"add_generation_prompt asks for one, so that a model would have to learn it"
                )
            ends = [id for id in self._ids(ending) if id in self._mark_ids]
            if not ends:
                raise ValueError(
                    f"{turn_name(TRIAL, i)}: the chat template writes no special token after the answer, "
                    f"so that a model would not learn where to stop"
                )
        return ends[0]


def one_line(error: Exception) -> str:
    """Returns the beginning of what an error says, on one line: a template may say what it likes."""
    return " ".join(str(error)[:500].split())


def refuse_split_marks(folder: Path) -> None:
    """Raises ValueError for a tokenizer that transformers lets split special tokens, also those that a template writes:
    a model that is trained on marks would be asked without.
    """
    if read_config(folder / CONFIG).get("split_special_tokens"):
        raise ValueError(
            f"{folder / CONFIG}: with split_special_tokens transformers writes the marks of a chat template as pieces "
            f"of text; set it to false"
        )
