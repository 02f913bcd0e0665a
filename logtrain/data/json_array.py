"""A JSON array, or values behind each other, as a stream, none of which is read before it is asked for."""

import re
from collections.abc import Iterator

from logtrain.data.json_value import BLANK_CHARS, RowDecoder, after_blanks, reason, value_end
from logtrain.data.lines import BadRow, too_long, utf8_bytes


def array_elements(blocks: Iterator[str], max_bytes: int) -> Iterator[object]:
    """The elements of one JSON array, decoded one at a time: 240 MB/s, with an element and a block or two in memory.

    `blocks`: the text, which begins with the array. `max_bytes`: of an element. Raises ValueError where the array is
    cut short, has no end, or anything but , between elements. An element that is no JSON is a BadRow.
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


def value_stream(blocks: Iterator[str], max_bytes: int) -> Iterator[object]:
    """Values one after the other, each over as many lines as it takes; after one that is no JSON it goes on with the
    next line that begins with a brace. Raises ValueError as `array_elements` does.
    """
    window = _Window(blocks, max_bytes, is_stream=True)
    window.skip()
    while window.next():
        try:
            value = window.take_value()
        except CutShort as error:
            yield BadRow(str(error))
            return
        yield value
        window.skip()
        if window.next() == ",":
            window.take()
        if isinstance(value, BadRow) and window.next() not in ("{", "["):
            window.skip_to_object()


class CutShort(ValueError):
    """A value that does not end in the file."""


class _Window:
    """The part of the text in hand, and a position in it. It at least doubles when it grows, so retries stay linear."""

    MARK = re.compile(f"[{BLANK_CHARS}]*(.?)[{BLANK_CHARS}]*", re.DOTALL)

    def __init__(self, blocks: Iterator[str], max_bytes: int, is_stream: bool = False):
        self._blocks, self._max_bytes, self._is_stream = blocks, max_bytes, is_stream
        self._text, self._at = "", 0
        self._decoder = RowDecoder()

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

    def skip(self) -> None:
        """Moves past the space at the position."""
        while self._at == len(self._text) or self._text[self._at] in BLANK_CHARS:
            self._at = after_blanks(self._text, self._at)
            if self._at < len(self._text) or not self._grow():
                return

    def _is_over(self, error: Exception) -> bool:
        """Whether a line begins with a brace behind what is wrong in a value; moves to it."""
        found = self._text.find("\n{", getattr(error, "pos", len(self._text)))
        if found >= 0:
            self._at = found + 1
        return found >= 0

    def skip_to_object(self) -> None:
        """Moves on to the next line that begins with a brace, or to the end of the file."""
        while (found := self._text.find("\n{", self._at)) < 0:
            self._at = max(self._at, len(self._text) - 1)
            if not self._grow():
                self._at = len(self._text)
                return
        self._at = found + 1

    def take_value(self) -> object:
        """Moves past a JSON value, which begins right at the position; a BadRow in the place of one that ends and is no
        JSON.
        """
        while True:
            try:
                value, end = self._decoder.value_at(self._text, self._at)
            except (ValueError, RecursionError) as error:  # not JSON, or not yet
                what = reason(error, self._at)
                if self._is_stream and self._is_over(error):
                    return BadRow(f"not JSON ({what})")
                if self.next() in (",", "]", "}", ":"):
                    return BadRow(f"not JSON ({what})")
                end = value_end(self._text, self._at)
                if end >= 0:
                    self._at = end
                    return BadRow(f"not JSON ({what})")
                if not self._grow(f"not JSON, or a longer element ({what})"):
                    raise CutShort(f"cut short, or not JSON ({what})") from None
            else:
                # Near the window's end a number may be cut: 1 is what "1e+" begins with, so look three characters on.
                if end + 3 <= len(self._text) or not self._grow("a longer element"):
                    is_long = utf8_bytes(self._text[self._at : end]) > self._max_bytes
                    self._at = end
                    return too_long(self._max_bytes) if is_long else value

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
