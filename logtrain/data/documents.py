"""Rows -> documents of text, for continual pretraining.

A row of JSON becomes a document by one of these rules; `auto` takes, for each row, the first whose columns it has:

    corpus   {text}                        text
    nlplog   {instruction, log, output}    Human: {instruction}\\nAssistant: {output}\\n
    alpaca   {instruction, input, output}  Human: {instruction}\\n{input}\\nAssistant: {output}\\n

`log` is not read, for the instruction quotes it; `\\n{input}` falls away where `input` is blank or absent. Any row may
have a `domain`; without one, or with a blank one, it belongs to the domain named after its file. No other column may
hold text (a string, array or object that is not empty): text that no rule reads makes the row bad, until its column is
named in `ignore_columns`. Columns of numbers, booleans and nulls hold no text and are left out.

A row of a text file is a document as it stands. No text is changed on its way: not stripped, not normalised.
"""

from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

from logtrain.data.files import BadRow, InputFile

Format = Literal["auto", "nlplog", "corpus"]
CHAT_COLUMNS = {"conversations": "sharegpt", "messages": "messages"}
JSON_TYPES = {
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    list: "an array",
    dict: "an object",
}


class Document(NamedTuple):
    row: int
    text: str
    domain: str


def documents(
    file: InputFile, format: Format, text_chars: int, ignore_columns: Collection[str] = ()
) -> Iterator[Document | BadRow]:
    """The documents in the file's order, a BadRow in the place of each row that is none and of an empty file."""
    if format == "nlplog" and not file.is_json:
        raise ValueError(f"{file.path}: a text file has no NLPlog rows; use --format auto")
    row = -1
    for row, value in file.rows(text_chars):
        try:
            text, domain = row_document(value, format, ignore_columns) if file.is_json else text_document(value)
            domain = domain or file.stem
            if not (text.isascii() and domain.isascii()):
                check_encodes(text)
                check_encodes(domain)
            yield Document(row, text, domain)
        except BadRow as bad:
            bad.row = row
            yield bad
    if row < 0:
        yield BadRow("the file holds no row", 0)


def text_document(text: str) -> tuple[str, str]:
    if text.isspace():
        raise BadRow("empty")
    return text, ""


def row_document(row: object, format: Format, ignore_columns: Collection[str] = ()) -> tuple[str, str]:
    """A JSON row's text and domain ("" if it names none). Raises BadRow."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"{json_type(row)}, not an object")
    if ignore_columns:
        row = {name: value for name, value in row.items() if name not in ignore_columns}
    if format == "corpus" or (format == "auto" and "text" in row):
        reads = {"text", "domain"}
        text = string(row, "text")
    elif format == "nlplog" or "instruction" in row or "output" in row:
        reads = {"instruction", "log" if format == "nlplog" or "log" in row else "input", "output", "domain"}
        prompt = string(row, "instruction")
        if "input" in reads and (context := string(row, "input", required=False)):
            prompt = f"{prompt}\n{context}"
        text = f"Human: {prompt}\nAssistant: {string(row, 'output')}\n"
    else:
        found = next((format for column, format in CHAT_COLUMNS.items() if column in row), None)
        hint = f"; a chat to fine-tune on is read with --format {found}" if found else ""
        raise BadRow(f"neither text nor instruction and output among its columns ({', '.join(row)}){hint}")
    unread = [name for name in row if name not in reads and isinstance(row[name], str | list | dict) and row[name]]
    if unread:
        raise BadRow(f'no rule reads the text in "{unread[0]}"; to leave it out, --ignore_columns {" ".join(unread)}')
    return text, string(row, "domain", required=False).strip()


def string(row: dict, name: str, required: bool = True) -> str:
    """A column's text, "" if it is blank or absent and not required."""
    value = row.get(name)
    if isinstance(value, str) and value and not value.isspace():
        return value
    if value is not None and not isinstance(value, str):
        raise BadRow(f'"{name}" is {json_type(value)}, not a string')
    if required:
        raise BadRow(f'no "{name}"' if value is None else f'"{name}" is empty')
    return ""


def json_type(value: object) -> str:
    return JSON_TYPES.get(type(value), "null")


def check_encodes(text: str) -> None:
    """Raises BadRow for what has no UTF-8 form: bytes that were none in the file, half a surrogate pair from \\u."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            raise BadRow(f"not UTF-8: byte 0x{code - 0xDC00:02x} after {error.start:,} characters") from None
        raise BadRow(f"\\u{code:04x} without its other half is no character") from None
