"""Which format the rows of files have, by the columns of the first ones."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from logtrain.core.printable import printable
from logtrain.data.config import ChatFormat, PrepareConfig, TextFormat
from logtrain.data.conversations import TURNS_IN
from logtrain.data.files import InputFile
from logtrain.data.lines import BadRow
from logtrain.data.rows import Reading, columns

ROWS = 20  # of a file that are looked at
TEXTS = "documents of text, for continual pretraining"
CHATS = "chats, for fine-tuning"


class Found(NamedTuple):
    """What a row is, and how that is known."""

    format: TextFormat | ChatFormat
    columns: str
    where: str


def resolved(config: PrepareConfig, files: Sequence[InputFile]) -> tuple[PrepareConfig, str]:
    """The config with the format of its rows in the place of `auto` where they are chats, and a line that says what was
    found; "" where there is nothing to say. Raises ValueError where a setting has no meaning for that format.
    """
    found = next(formats_of(files, reading_of(config)), None) if config.format == "auto" else None
    is_chat = found is not None and found.format in TURNS_IN
    if config.format == "auto" and not is_chat:
        config.check_meaning()
    if found is None:
        return config, ""
    what = CHATS if is_chat else TEXTS
    if found.format == "alpaca":
        what += f" (--format alpaca makes {CHATS})"
    line = f"format: {found.format}, by {found.columns} of {found.where}: {what}"
    return replace(config, format=found.format) if is_chat else config, printable(line, one_line=True)


def reading_of(config: PrepareConfig) -> Reading:
    """How the config says that columns are read."""
    return Reading(config.ignore_columns, config.renamed, config.split_by)


def formats_of(files: Sequence[InputFile], reading: Reading) -> Iterator[Found]:
    """The formats of the first rows of each file, as far as they show one."""
    for file in files:
        if file.kind.is_text:
            continue
        for row, value in itertools.islice(file.again().rows(1), ROWS):
            if isinstance(value, BadRow):
                continue
            try:
                yield from format_of(reading.named(value), f"{file.path} row {row}", reading)
            except BadRow:
                continue


def format_of(value: object, where: str, reading: Reading) -> Iterator[Found]:
    """The format of a row, if it shows one. Raises BadRow."""
    if isinstance(value, list):  # of turns
        keys = {key for turn in value[:1] if isinstance(turn, dict) for key in turn}
        for format, turns in TURNS_IN.items():
            if {turns.role, turns.text} <= keys:
                yield Found(format, "the turns", where)
        return
    row = columns(value, reading)
    for format, turns in TURNS_IN.items():
        if turns.turns in row:
            yield Found(format, f'the column "{turns.turns}"', where)
            return
    if "text" in row:
        yield Found("corpus", 'the column "text"', where)
    elif "instruction" in row and "output" in row:
        format = "nlplog" if "log" in row else "alpaca"
        others = ", ".join(name for name in ("instruction", "log", "input", "output") if name in row)
        yield Found(format, f"the columns {others}", where)
