"""Rows of chat data -> conversations, for fine-tuning.

    sharegpt   {conversations: [{from, value}, ...], system}    from: human or user, gpt or assistant, system
    messages   {messages: [{role, content}, ...]}               role: user, assistant, system
    alpaca     {instruction, input, output, system}             one question, "{instruction}\\n{input}", and its answer

`system` and `input` may be absent or blank. A conversation is a system turn or none, then user and assistant by turns,
an assistant's last. Any row may have a `domain`; without one it belongs to the domain named after its file. What no
rule reads makes the row bad, in a row (only text: ids are often numbers) as in a turn (anything), until its column is
named in `ignore_columns`: to leave out a weight, a tool call or a thought would be to train on something else.

No text is changed on its way here. What a chat template strips, it strips in a chat too.
"""

from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

from logtrain.data.documents import check_encodes, json_type, string
from logtrain.data.files import BadRow, InputFile
from logtrain.text.chat_template import Turn, check_turns

ChatFormat = Literal["sharegpt", "messages", "alpaca"]
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation", "ipython")
TURNS_IN = {"sharegpt": ("conversations", "from", "value"), "messages": ("messages", "role", "content")}


class Conversation(NamedTuple):
    row: int
    turns: tuple[Turn, ...]
    domain: str


def conversations(
    file: InputFile, format: ChatFormat, ignore_columns: Collection[str] = ()
) -> Iterator[Conversation | BadRow]:
    """The conversations in the file's order, a BadRow in the place of each row that is none and of an empty file."""
    if not file.is_json:
        raise ValueError(f"{file.path}: a text file has no {format} rows; use --format auto")
    row = -1
    for row, value in file.rows(text_chars=1):
        try:
            turns, domain = row_conversation(value, format, ignore_columns)
            yield Conversation(row, turns, domain or file.stem)
        except BadRow as bad:
            bad.row = row
            yield bad
    if row < 0:
        yield BadRow("the file holds no row", 0)


def row_conversation(
    row: object, format: ChatFormat, ignore_columns: Collection[str] = ()
) -> tuple[tuple[Turn, ...], str]:
    """A JSON row's turns and domain ("" if it names none). Raises BadRow."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"{json_type(row)}, not an object")
    row = {name: value for name, value in row.items() if name not in ignore_columns}
    if format == "alpaca":
        reads = {"instruction", "input", "output"}
        prompt = string(row, "instruction")
        if context := string(row, "input", required=False):
            prompt = f"{prompt}\n{context}"
        turns = [Turn("user", prompt), Turn("assistant", string(row, "output"))]
    else:
        reads = {TURNS_IN[format][0]}
        turns = listed_turns(row, *TURNS_IN[format], ignore_columns)
    if format != "messages":  # where the system's words have a place among the others
        reads.add("system")
        if system := string(row, "system", required=False):
            turns.insert(0, Turn("system", system))
    unread = [name for name in row if name not in reads | {"domain"} and isinstance(row[name], str | list | dict)]
    check_unread([name for name in unread if row[name]])
    try:
        check_turns(turns)
    except ValueError as error:
        raise BadRow(str(error)) from None
    domain = string(row, "domain", required=False).strip()
    for text in (domain, *(turn.content for turn in turns)):
        if not text.isascii():
            check_encodes(text)
    return tuple(turns), domain


def listed_turns(row: dict, column: str, role_key: str, text_key: str, ignore_columns: Collection[str]) -> list[Turn]:
    if row.get(column) is None:
        raise BadRow(f'no "{column}" among its columns ({", ".join(row)})')
    if not isinstance(row[column], list):
        raise BadRow(f'"{column}" is {json_type(row[column])}, not an array')
    turns = []
    for i, turn in enumerate(row[column]):
        if not isinstance(turn, dict):
            raise BadRow(f"turn {i} is {json_type(turn)}, not an object")
        try:
            name = string(turn, role_key)
            if name in TOOL_ROLES:
                raise BadRow(f"{role_key} {name!r} is a tool's: conversations with tools are not supported")
            if name not in ROLES:
                raise BadRow(f"unknown {role_key} {name!r}, not one of {', '.join(ROLES)}")
            turns.append(Turn(ROLES[name], string(turn, text_key)))
            others = [key for key in turn if key not in {role_key, text_key, *ignore_columns}]
            check_unread([key for key in others if turn[key] not in (None, "", [], {})])
        except BadRow as bad:
            raise BadRow(f"turn {i}: {bad}") from None
    return turns


def check_unread(names: list[str]) -> None:
    if names:
        raise BadRow(f'no rule reads "{names[0]}"; to leave it out, --ignore_columns {" ".join(names)}')
