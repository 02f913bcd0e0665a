"""Rows of a JSON file, in whichever way it holds them:

array     [{...}, {...}]
lines     a value a line, or several objects behind each other
stream    objects over as many lines as they take (pretty-printed), or all in one line without an end
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Literal

from logtrain.data.json_array import array_elements, value_stream
from logtrain.data.json_value import BLANK_CHARS, SEPARATORS, RowDecoder
from logtrain.data.lines import BadRow, lines

HEAD_CHARS = 1 << 20  # by which the layout is found
HEAD_LINES = 100


def json_rows(texts: Iterator[str], max_bytes: int) -> Iterator[tuple[int, object]]:
    """(row, its value or a BadRow). Rows count elements, of a stream values, and else lines, blank ones too. Raises
    ValueError where the file cannot be read on.
    """
    head, size, is_whole = [], 0, False
    while size < HEAD_CHARS or not any(text.strip() for text in head):
        if size > max(max_bytes, HEAD_CHARS):
            raise ValueError(f"begins with more than {max_bytes:,} blanks")
        block = next(texts, None)
        if block is None:
            is_whole = True
            break
        head.append(block)
        size += len(block)
    layout, texts = layout_of("".join(head), is_whole), itertools.chain(head, texts)
    if layout == "lines":
        return json_lines(texts, max_bytes)
    return enumerate((array_elements if layout == "array" else value_stream)(texts, max_bytes))


def layout_of(head: str, is_whole: bool) -> Literal["array", "lines", "stream"]:
    """How a file that begins so holds its rows. `is_whole`: whether that is all of it."""
    mark = head.lstrip(BLANK_CHARS)[:1]
    whole = [line.lstrip(SEPARATORS) for line in head.split("\n")]
    rest = whole.pop() if not is_whole else ""
    few = [line for line in itertools.islice(whole, HEAD_LINES) if line.strip()]
    decoder = RowDecoder()
    if mark == "[":  # lists a line are an array's first line and something behind it
        firsts = [line for line in few[:2] if line.startswith("[")]
        return "lines" if len(firsts) == 2 and all(map(is_value, firsts)) else "array"
    if mark != "{" or any(line.startswith("{") and is_value(line) for line in few):
        return "lines"
    if not few:  # one line, and not its end
        try:
            _, end = decoder.value_at(rest, len(rest) - len(rest.lstrip()))
        except (ValueError, RecursionError):
            return "lines"
        return "stream" if rest[end:].strip() else "lines"
    return "stream" if len(few) > 1 else "lines"


def is_value(line: str) -> bool:
    """Whether a line is JSON."""
    try:
        json.JSONDecoder(parse_int=str).decode(line)
    except json.JSONDecodeError as error:
        return error.msg == "Extra data" and error.pos > 1 and line[error.pos] in "{["
    except RecursionError:
        return True
    return True


def json_lines(texts: Iterable[str], max_bytes: int) -> Iterator[tuple[int, object]]:
    """The values of each line, which have its number; a BadRow in the place of a line that holds none, but for blank
    ones.
    """
    decoder = RowDecoder()
    for row, line in enumerate(lines(texts, max_bytes)):
        if isinstance(line, BadRow):
            yield row, line
        elif not line.isspace():
            for value in decoder.values_of(line):
                yield row, value
