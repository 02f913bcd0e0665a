"""Rows of chat data -> conversations, for fine-tuning.

    sharegpt   {conversations: [{from, value}, ...], system}    from: human or user, gpt or assistant, system
    messages   {messages: [{role, content}, ...]}               role: user, assistant, system
               either may be the list alone, or JSON in a column of text, and have the other's names within a turn
    alpaca     {instruction, input, output, system}             one question, "{instruction}\\n{input}", and its answer
    dpo        {prompt, chosen, rejected, system}           a prompt of text or messages, and two answers to it; also
               {conversations, chosen, rejected, system}    as in sharegpt; an answer is a text, a turn or a list that
                                                       ends with one, behind the prompt that both begin with

`system` and `input` may be absent or blank. A conversation is a system turn or none, then user and assistant by turns,
an assistant's last. Any row may have a `domain`; without one it belongs to the domain named after its file. What no
rule reads makes the row bad, in a row (only text: ids are often numbers) as in a turn (anything), until its column is
named in `ignore_columns`: to leave out a weight, a tool call or a thought would be to train on something else.

No text is changed on its way here. What a chat template strips, it strips in a chat too.
"""

import shlex
from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

from logtrain.core.untrusted import json_type
from logtrain.data.config import ChatFormat
from logtrain.data.files import InputFile
from logtrain.data.json_value import RowDecoder
from logtrain.data.lines import BadRow
from logtrain.data.rows import (
    AS_THEY_ARE,
    Reading,
    columns,
    domain_of,
    group_of,
    hint_of_rows,
    parsed_rows,
    refuse_unencodable,
    string,
)
from logtrain.text.chat_template import Turn, check_turns
from logtrain.text.turns import check_question

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation", "ipython")


class TurnColumns(NamedTuple):
    """Where a format has its turns."""

    turns: str
    """the column of a row that lists them"""
    role: str
    """in a turn: who speaks"""
    text: str
    """in a turn: what is said"""


TURNS_IN: dict[ChatFormat, TurnColumns] = {
    "sharegpt": TurnColumns("conversations", "from", "value"),
    "messages": TurnColumns("messages", "role", "content"),
}
CHAT_COLUMNS: dict[str, ChatFormat] = {where.turns: format for format, where in TURNS_IN.items()}
"""The column by which a row is known as a chat -> its format."""


class Conversation(NamedTuple):
    """Turns to train on, and where they come from."""

    row: int
    turns: tuple[Turn, ...]
    domain: str
    group: str = ""
    """its value in the column that the split goes by"""


def conversations(
    file: InputFile, format: ChatFormat, reading: Reading = AS_THEY_ARE
) -> Iterator[Conversation | BadRow]:
    """The conversations in the file's order, a BadRow in the place of each row that is none and of an empty file.
    Raises ValueError for a file that cannot be read on, or that has no rows of this format.
    """
    if file.kind.is_text:
        raise ValueError(f"{file.path}: a text file has no {format} rows; use --format auto")

    def parse(row: int, value: object) -> Iterator[Conversation]:
        value = reading.named(value)
        turns, domain = row_pair(value, reading) if format == "dpo" else row_conversation(value, format, reading)
        domain = domain or file.stem
        if reading.split_by == "system" and turns[0].role == "system":
            value = {"system": turns[0].content}  # also where it is a turn
        yield Conversation(row, turns, domain, group_of(value, reading.split_by, domain))

    return parsed_rows(file, 1, parse)


def row_conversation(value: object, format: ChatFormat, reading: Reading = AS_THEY_ARE) -> tuple[tuple[Turn, ...], str]:
    """The turns and domain ("" if it names none) of a JSON row. Raises BadRow."""
    if isinstance(value, list) and format != "alpaca":  # of turns
        value = {TURNS_IN[format].turns: value}
    row = columns(value, reading)
    if format == "alpaca":
        reads = {"instruction", "input", "output"}
        prompt = string(row, "instruction")
        if context := string(row, "input", required=False):
            prompt = f"{prompt}\n{context}"
        turns = [Turn("user", prompt), Turn("assistant", string(row, "output"))]
    else:
        reads = {TURNS_IN[format].turns}
        turns = listed_turns(row, TURNS_IN[format], reading.ignore)
    if format != "messages":  # where the system's words have a place among the others
        reads.add("system")
        if system := string(row, "system", required=False):
            turns.insert(0, Turn("system", system))
    refuse_unread(reading.unread(row, reads))
    try:
        check_turns(turns)
    except ValueError as error:
        raise BadRow(str(error)) from None
    domain = domain_of(row)
    for text in (domain, *(turn.content for turn in turns)):
        refuse_unencodable(text)
    return tuple(turns), domain


def row_pair(value: object, reading: Reading = AS_THEY_ARE) -> tuple[tuple[Turn, ...], str]:
    """The turns of a prompt, behind them the chosen and the rejected answer, and the domain ("" if it names none) of a
    JSON row. Raises BadRow.
    """
    row = columns(value, reading)
    where = TURNS_IN["sharegpt"] if "conversations" in row else TurnColumns("prompt", "role", "content")
    sides = [listed_answer(row, name, where, reading.ignore) for name in ("chosen", "rejected")]
    begun, answers = sides[0][:-1], [side[-1] for side in sides]
    if begun != sides[1][:-1]:
        raise BadRow("chosen and rejected are not answers to the same turns")
    if begun and where.turns not in row:
        prompt = begun
    elif where.turns == "prompt" and not isinstance(row.get("prompt"), list):
        prompt = [Turn("user", string(row, "prompt"))]
    else:
        prompt = listed_turns(row, where, reading.ignore)
    if begun and prompt != begun:
        if prompt != begun[-1:]:
            raise BadRow(f'"{where.turns}" is not what chosen and rejected begin with')
        prompt = begun
    if system := string(row, "system", required=False):
        prompt = [Turn("system", system), *prompt]
    refuse_unread(reading.unread(row, {where.turns, "chosen", "rejected", "system"}))
    try:
        check_question(prompt)
    except ValueError as error:
        raise BadRow(str(error)) from None
    if answers[0] == answers[1]:
        raise BadRow("chosen and rejected are the same")
    domain = domain_of(row)
    for text in (domain, *(turn.content for turn in (*prompt, *answers))):
        refuse_unencodable(text)
    return (*prompt, *answers), domain


def listed_answer(row: dict[str, object], name: str, where: TurnColumns, ignore_columns: Collection[str]) -> list[Turn]:
    """An answer in a column of its own: a text, a turn of an assistant, or a list that ends with one, behind the turns
    that it answers. Raises BadRow.
    """
    value = row.get(name)
    if not isinstance(value, dict | list):
        return [Turn("assistant", string(row, name))]
    listed: dict[str, object] = {name: [value] if isinstance(value, dict) else value}
    turns = listed_turns(listed, where._replace(turns=name), ignore_columns)
    if not turns or turns[-1].role != "assistant":
        raise BadRow(
            f'"{name}" has the turns {", ".join(turn.role for turn in turns) or "none"}, not one of an assistant'
        )
    return turns


def listed_turns(row: dict[str, object], where: TurnColumns, ignore_columns: Collection[str]) -> list[Turn]:
    """The turns in the column of a row that lists them. Raises BadRow."""
    listed = row.get(where.turns)
    if listed is None:
        raise BadRow(f'no "{where.turns}" among its columns ({", ".join(row)}){hint_of_rows(row)}')
    if isinstance(listed, str):  # in a table of text
        listed = json_cell(listed)
    if isinstance(listed, dict):  # columns of turns, as Hugging Face's datasets keep lists of objects
        listed = rows_of(listed)
    if not isinstance(listed, list):
        what = "a string" if isinstance(listed, str) else json_type(listed)  # of a Cell, too
        raise BadRow(f'"{where.turns}" is {what}, not an array')
    turns = []
    for i, turn in enumerate(listed):
        if not isinstance(turn, dict):
            raise BadRow(f"turn {i} is {json_type(turn)}, not an object")
        found = next((names for names in (where, *TURNS_IN.values()) if names.role in turn), where)
        try:
            name = string(turn, found.role)
            if name in TOOL_ROLES:
                raise BadRow(f"{found.role} {name!r} is a tool's: conversations with tools are not supported")
            if name not in ROLES:
                raise BadRow(f"unknown {found.role} {name!r}, not one of {', '.join(ROLES)}")
            turns.append(Turn(ROLES[name], string(turn, found.text)))
            others = [key for key in turn if key not in {found.role, found.text, *ignore_columns}]
            refuse_unread([key for key in others if turn[key] not in (None, "", [], {})])
        except BadRow as bad:
            raise BadRow(f"turn {i}: {bad}") from None
    return turns


def rows_of(columns: dict[str, object]) -> object:
    """The objects that columns of equal lengths stand for; the columns as they are where they do not."""
    lists = [value for value in columns.values() if isinstance(value, list)]
    if len(lists) < len(columns) or len({len(values) for values in lists}) != 1:
        return columns
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def json_cell(text: str) -> object:
    """The JSON value that a string holds, else the string; a BadRow where something of it would be lost."""
    try:
        value, end = RowDecoder().value_at(text.strip(), 0)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, BadRow):
        raise value
    return value if end == len(text.strip()) else text


def refuse_unread(names: list[str]) -> None:
    """Raises BadRow where a row or a turn has columns that no rule reads."""
    if names:
        raise BadRow(f'no rule reads "{names[0]}"; to leave it out, --ignore_columns {shlex.join(names)}')
