"""What a user may set of the data: how it is prepared, and how it is loaded. Nothing here imports torch, so that
`--help` answers at once.
"""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self, TypeGuard, get_args

import tyro

from logtrain.core.kinds import NONE_BY_DEFAULT, Config
from logtrain.core.location import FILE, OUTPUT, TOKENIZER
from logtrain.data.files import ENDINGS
from logtrain.data.lines import MAX_ROW_MB
from logtrain.text.config import DATE, TrainOn, check_date

TextFormat = Literal["auto", "nlplog", "corpus"]
ChatFormat = Literal["sharegpt", "messages", "alpaca", "dpo"]
READ_COLUMNS = {"text", "instruction", "input", "output", "log", "conversations", "messages", "system", "domain"}
READ_COLUMNS |= {"prompt", "chosen", "rejected"}
"""All that some rule reads."""
TooLong = Literal["auto", "error", "drop", "split_turns", "truncate_content", "truncate_answer"]
TEXT_ONLY = {
    "document_end",
    "text_chars",
    "records",
    "max_per_template",
    "mask_values",
}  # settings of continual pretraining
MOST_TOP_K = 256  # outcomes of a teacher's distribution that are stored beside a token, in 1.5 KB
CHAT_ONLY = {"train_on", "too_long", "template", "date"}  # settings of fine-tuning


def is_text_format(format: str) -> TypeGuard[TextFormat]:
    """Whether rows of this format become documents of text."""
    return format in get_args(TextFormat)


def is_chat_format(format: str) -> TypeGuard[ChatFormat]:
    """Whether rows of this format become conversations."""
    return format in get_args(ChatFormat)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Config):
    """Turn raw text files into token shards for training."""

    input: Annotated[
        tuple[str, ...], tyro.conf.arg(help=f"Files: {ENDINGS}."), FILE
    ]  # files.py knows the kinds there are
    tokenizer: Annotated[str, TOKENIZER]
    """Folder of the model's tokenizer (tokenizer.json or a sentencepiece tokenizer.model)."""
    output: Annotated[str, OUTPUT] = ""
    """Folder to write. It appears once everything is done; a folder that holds anything else is never touched."""
    format: Literal[TextFormat, ChatFormat] = "auto"
    """JSON rows: nlplog {instruction, log, output}, corpus {text}. auto goes by the columns, row for row, and takes
    {instruction, input, output} too: Human: {instruction}, a new line, {input} if there is one, Assistant: {output}; it
    is sharegpt or messages where the first row is such a chat.
    For fine-tuning, as the turns of a chat: sharegpt {conversations: [{from, value}]}, messages {messages: [{role,
    content}]}, alpaca {instruction, input, output}; sharegpt and alpaca may have {system}.
    For logtrain dpo: dpo {prompt, chosen, rejected}, the prompt a text or messages, or {conversations, chosen,
    rejected}, or whole chats as {chosen, rejected}, which differ in the last answer; a pair that is longer than seq_len
    with both its answers is left out and counted."""
    seq_len: int = 8192
    """Tokens in a packed row of the training to come. No document is cut here; the report counts what will be split."""
    valid_fraction: float = 0.01
    """Share of the documents kept for validation, chosen by a hash of their text with numbers, addresses, times and ids
    masked: texts that differ only in these stay together. One whose near-twin is trained on is trained on too. Of few
    documents one is kept at least; 0: none."""
    split_by: str = ""
    """Keeps whole groups for validation: all documents with the same value in this column of their rows, as domain,
    system or source, chosen by a hash of it, until about valid_fraction of the documents are kept. Of the other groups
    as many are kept by their text, as valid_seen: training tells the losses of both."""
    seed: int = 1309
    """Another seed, another choice of validation documents."""
    train_on: TrainOn = "all"
    """Chat rows: the answers that are trained on, each with the token that ends it: all of them, or the last."""
    too_long: TooLong = "auto"
    """A conversation of more than seq_len tokens: truncate_content cuts the longest questions in their middle, never an
    answer; split_turns goes on in another conversation; drop leaves it out; error stops;
    truncate_answer cuts questions to half a row and then what is behind the row's end, so that no end is learned there.
    auto is truncate_content, and stops where more than a tenth of the answers' tokens would be lost."""
    template: Annotated[str, FILE] = ""
    """Chat rows: a jinja file to render them with instead of the tokenizer's own chat template."""
    date: str = DATE
    """The date that is given to a chat template that asks for today's."""
    show: int = 0
    """Prints so many documents of the input, as they would be stored, with their targets marked; writes nothing."""
    document_end: str = "auto"
    """Token that closes a document; auto: <|end_of_text|>, <|endoftext|> or </s>, the first the tokenizer has."""
    text_chars: int = 32768
    """A .txt or .log file is cut between lines into documents of at most this many characters. Documents nearly as long
    as a row pack badly: of 8,192 tokens, system logs fill 98% with 2,048 or 32,768 characters, 79% with 16,384."""
    records: Literal["line", "block"] = "line"
    """A record of a .txt or .log file: a line, or a block: a line that begins as most do (say, with a time) and what
    goes on below it, so that stack traces stay whole. Documents are cut between records."""
    max_per_template: int = 0
    """Of records that differ only in values and a few words, keeps the first so many, over all files. 0: all."""
    mask_values: bool = False
    """Writes # for the numbers, times, addresses and ids in records."""
    columns: Annotated[tuple[str, ...], NONE_BY_DEFAULT] = ()
    """Other names of columns, each THEIRS=OURS, as question=instruction answer=output. A dot leads into an object, as
    meta.text=text, or by number into an array."""
    ignore_columns: Annotated[tuple[str, ...], NONE_BY_DEFAULT] = ()
    """Columns of JSON rows to leave out. Without this, a column with text that is not used makes its row bad."""
    max_row_mb: int = MAX_ROW_MB
    """A row, or a line of text, of more megabytes is a bad row; an array's element of more ends the run."""
    max_bad_rows: int = 0
    """More bad rows than this stop the run; up to this many are left out and listed in the report."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """skip: leaves out and counts all bad rows, however many; there must be good ones."""
    max_lost_chars: int = 0
    """Characters that the tokenizer has no token for: more than this stop the run; the report counts them."""
    shard_tokens: int = 100_000_000
    """A shard file is closed at this many tokens."""
    workers: int = 0
    """Tokenising processes, which share the cores: a thread each, at most 8 a process. 0: one for every 8 cores."""

    def __post_init__(self):
        super().__post_init__()
        if not self.input:
            raise ValueError("input: no file given")
        if not self.output and not self.show:
            raise ValueError("output: required; give --output ..., or set it in a TOML file")
        least_of = {
            "seq_len": 2,
            "text_chars": 1,
            "shard_tokens": 1,
            "max_row_mb": 1,
            "max_bad_rows": 0,
            "max_per_template": 0,
            "workers": 0,
            "seed": 0,
        }
        for name, least in (least_of | {"show": 0}).items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {least}")
        if not 0 <= self.valid_fraction < 1:
            raise ValueError(f"valid_fraction = {self.valid_fraction} must be at least 0 and below 1")
        if self.split_by and (self.split_by in self.ignore_columns or not self.valid_fraction):
            what = "is among ignore_columns" if self.valid_fraction else "has no meaning with valid_fraction = 0"
            raise ValueError(f"split_by = {self.split_by} {what}; leave out one of the two")
        if self.bad_rows == "skip" and self.max_bad_rows:
            raise ValueError(
                f"max_bad_rows = {self.max_bad_rows} has no meaning with bad_rows = skip; leave out one of the two"
            )
        check_renames(self.columns, READ_COLUMNS | ({self.split_by} if self.split_by else set()))
        if self.format != "auto":  # else when the format is found
            self.check_meaning()
        if self.train_on == "last" and self.too_long == "split_turns":
            raise ValueError(
                "train_on = last trains one answer of a row, too_long = split_turns makes several conversations of it; "
                "take another of the two"
            )
        check_date(self.date)

    def check_meaning(self) -> None:
        """Raises ValueError for a setting that has no meaning for rows of this format."""
        for name in sorted(TEXT_ONLY if self.is_chat else CHAT_ONLY):
            if getattr(self, name) != getattr(PrepareConfig, name):  # its default
                formats = ", ".join(get_args(TextFormat if self.is_chat else ChatFormat))
                raise ValueError(
                    f"{name} = {getattr(self, name)} has no meaning with format = {self.format}; it is for {formats}"
                )
        if self.format == "dpo" and (self.train_on != "all" or self.too_long not in ("auto", "drop", "error")):
            raise ValueError(
                f"format = dpo trains on the two answers of a pair whole: train_on = {self.train_on} and too_long = "
                f"{self.too_long} must be all, and auto, drop or error"
            )

    @property
    def renamed(self) -> dict[str, str]:
        """The name of a column in the files -> the name by which the rules know it."""
        return renames(self.columns)

    @property
    def most_bad_rows(self) -> int:
        """More than so many bad rows stop the run."""
        return sys.maxsize if self.bad_rows == "skip" else self.max_bad_rows

    @property
    def is_chat(self) -> bool:
        """Whether rows become conversations, for fine-tuning, rather than documents of text."""
        return is_chat_format(self.format)


@dataclass(frozen=True, kw_only=True)
class LoaderConfig(Config, prefix="loader."):
    """The rows of a step."""

    seq_len: int = 8192
    """Tokens in a packed row; the data must have been prepared for it."""
    rows_per_step: int = 128
    """Packed rows an optimizer step takes, over all ranks and micro-batches."""
    documents_per_step: int = 0
    """Instead of rows_per_step: so many documents (conversations) a step on average. 0: rows_per_step counts."""
    rows_per_batch: int = 1
    """Packed rows a rank puts through the model at once (a micro-batch)."""
    attention: Literal["document", "row"] = "document"
    """document: a token sees only its own document. row: one causal mask over the whole row, as in trainers that pack
    without a mask; the first token of a document is no target in either.
    """

    def __post_init__(self):
        super().__post_init__()
        for name in ("seq_len", "rows_per_step", "rows_per_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"loader.{name} = {getattr(self, name)} must be at least 1")
        if self.documents_per_step < 0:
            raise ValueError(f"loader.documents_per_step = {self.documents_per_step} must not be negative")

    def accumulation(self, world_size: int) -> int:
        """Micro-batches a rank runs in a step. Raises ValueError where the ranks cannot share its rows evenly."""
        at_once = world_size * self.rows_per_batch
        if self.rows_per_step % at_once:
            nearest = -(-self.rows_per_step // at_once) * at_once
            raise ValueError(
                f"loader.rows_per_step = {self.rows_per_step} is not a multiple of {at_once} ({world_size} ranks x "
                f"loader.rows_per_batch = {self.rows_per_batch}); set rows_per_step to {nearest}"
            )
        return self.rows_per_step // at_once

    def with_rows_per_step(self, rows_per_step: int) -> Self:
        """The same with steps of so many rows, however that was configured."""
        return replace(self, rows_per_step=rows_per_step, documents_per_step=0)

    def rows_for_documents(self, documents_per_row: float, world_size: int) -> int:
        """Rows of a step that hold `documents_per_step` on average, rounded to what the ranks take at once."""
        at_once = world_size * self.rows_per_batch
        return max(1, round(self.documents_per_step / documents_per_row / at_once)) * at_once


def renames(columns: Sequence[str]) -> dict[str, str]:
    """{THEIRS: OURS} of texts THEIRS=OURS."""
    return {theirs: ours for theirs, _, ours in (text.rpartition("=") for text in columns)}


def check_renames(columns: Sequence[str], known: Collection[str]) -> None:
    """Raises ValueError for a column that is renamed to what no rule reads, and for two that are renamed to one.
    `known`: the columns that some rule reads.
    """
    for text in columns:
        theirs, equals, ours = text.rpartition("=")
        if not (theirs and equals) or ours not in known:
            raise ValueError(
                f"columns: {text!r}: expected THEIRS=OURS, ours one of {', '.join(sorted(known))}; "
                f"leave out others with --ignore_columns"
            )
    found = renames(columns)
    if len(found) < len(columns) or len(set(found.values())) < len(columns):
        raise ValueError(f"columns: {' '.join(columns)!r}: a name stands twice on one side")
