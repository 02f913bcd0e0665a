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

import shlex
from collections.abc import Iterator
from typing import NamedTuple

from logtrain.data.config import TextFormat
from logtrain.data.conversations import CHAT_COLUMNS
from logtrain.data.files import InputFile
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


class Document(NamedTuple):
    """A text to train on, and where it comes from."""

    row: int
    text: str
    domain: str
    group: str = ""
    """its value in the column that the split goes by"""


def documents(
    file: InputFile, format: TextFormat, text_chars: int, reading: Reading = AS_THEY_ARE
) -> Iterator[Document | BadRow]:
    """The documents in the file's order, a BadRow in the place of each row that is none and of an empty file. Raises
    ValueError for a file that cannot be read on, or that has no rows of this format.
    """
    if format == "nlplog" and file.kind.is_text:
        raise ValueError(f"{file.path}: a text file has no NLPlog rows; use --format auto")
    if reading.split_by not in ("", "domain") and file.kind.is_text:
        raise ValueError(
            f"{file.path}: a text file has no column {reading.split_by!r}; --split_by domain goes by its name"
        )

    def parse(row: int, value: object) -> tuple[Document]:
        if file.kind.is_text:
            assert isinstance(value, str)
            text, domain = text_document(value)
        else:
            value = reading.named(value)
            text, domain = row_document(value, format, reading)
        domain = domain or file.stem
        refuse_unencodable(text)
        refuse_unencodable(domain)
        return (Document(row, text, domain, group_of(value, reading.split_by, domain)),)

    return parsed_rows(file, text_chars, parse)


def text_document(text: str) -> tuple[str, str]:
    """The text and domain ("", for it names none) of a row of a text file. Raises BadRow."""
    if text.isspace():
        raise BadRow("empty")
    return text, ""


def row_document(value: object, format: TextFormat, reading: Reading = AS_THEY_ARE) -> tuple[str, str]:
    """The text and domain ("" if it names none) of a JSON row. Raises BadRow."""
    row = columns(value, reading)
    if format == "corpus" or (format == "auto" and "text" in row):
        reads = {"text"}
        text = string(row, "text")
    elif format == "nlplog" or "instruction" in row or "output" in row:
        reads = {"instruction", "log" if format == "nlplog" or "log" in row else "input", "output"}
        prompt = string(row, "instruction")
        if "input" in reads and (context := string(row, "input", required=False)):
            prompt = f"{prompt}\n{context}"
        text = f"Human: {prompt}\nAssistant: {string(row, 'output')}\n"
    else:
        found = next((format for column, format in CHAT_COLUMNS.items() if column in row), None)
        hint = f"; a chat to fine-tune on is read with --format {found}" if found else hint_of_rows(row)
        if {"chosen", "rejected"} <= row.keys():
            hint = "; pairs of answers are read with --format dpo"
        raise BadRow(f"neither text nor instruction and output among its columns ({', '.join(row)}){hint}")
    if unread := reading.unread(row, reads):
        raise BadRow(f'no rule reads the text in "{unread[0]}"; to leave it out, --ignore_columns {shlex.join(unread)}')
    return text, domain_of(row)
