"""JSON values of others' files, decoded one by one: one that is no JSON, or would lose something, is one bad row."""

import json
import re

import orjson

from logtrain.core.untrusted import parse_int
from logtrain.data.lines import BadRow

TOKEN = re.compile(r'"(?:[^"\\]++|\\.|\\\Z)*+(?P<closed>")?|[\[\]{}]', re.DOTALL)
SCALAR = re.compile(r'[^\s,\[\]{}"]++(?=[\s,\]}])')
SEPARATORS = "\x1e\ufeff"  # before a value: the mark of RFC 7464 (json-seq), and UTF-8's, of a file behind another
BLANK_CHARS = f" \t\r\n{SEPARATORS}"
BLANKS = re.compile(f"[{BLANK_CHARS}]*")
KEY_END = re.compile(r'"\s*:')
ALIKE = {int, bool, type(None)}  # beside text what both libraries read alike; of large integers orjson makes floats


class RowDecoder:
    """Decodes rows. A number of more digits than any has, and a key that stands twice, of which all but the last value
    would be lost, make a row bad and yet do not hide where it ends.
    """

    def __init__(self):
        self._problem = ""
        self._decoder = json.JSONDecoder(parse_int=self._int, object_pairs_hook=self._object)

    def value_at(self, text: str, at: int) -> tuple[object, int]:
        """The value, or a BadRow, that begins right at a position, and where it ends. Raises ValueError for what is no
        JSON, or not yet, and RecursionError.
        """
        self._problem = ""
        value, end = self._decoder.raw_decode(text, at)
        return BadRow(self._problem) if self._problem else value, end

    def values_of(self, line: str) -> list[object]:
        """The values of a line, which has one, or several objects behind each other; a single BadRow where anything of
        it cannot be read.
        """
        if (row := flat_object(line)) is not None:
            return [row]
        found, at = [], after_blanks(line, 0)
        try:
            while at < len(line):
                value, at = self.value_at(line, at)
                found.append(value)
                at = after_blanks(line, at)
                if at < len(line) and not isinstance(value, dict | list | BadRow):
                    raise json.JSONDecodeError("Extra data", line, at)
        except (ValueError, RecursionError) as error:
            return [BadRow(f"not JSON on one line ({reason(error)})")]
        return found

    def _int(self, digits: str) -> int:
        try:
            return parse_int(digits)
        except ValueError as error:
            self._problem = str(error)
            return 0

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))
            self._problem = f'"{twice}" stands twice in an object: one of the two would be lost'
        return found


def flat_object(text: str) -> dict[str, object] | None:
    """The object that a text is, in 60% of the time; None where it is none, or not as simple as most rows are: a value
    in it is an array, an object or a float, or a key may stand twice, for the text has more quotes than its strings
    need, or more ends of keys than there are keys.
    """
    try:
        row = orjson.loads(text)
    except ValueError:
        return None
    if type(row) is not dict:
        return None
    num_strings = len(row)
    for value in row.values():
        if type(value) is str:
            num_strings += 1
        elif type(value) not in ALIKE:
            return None
    has_each_once = text.count('"') == 2 * num_strings or len(KEY_END.findall(text)) == len(row)
    return row if has_each_once else None


def value_end(text: str, at: int) -> int:
    """Where a value that is no JSON ends, by its brackets and quotes; -1 if that is not in the text."""
    if text[at : at + 1] not in (*"[{", '"'):
        match = SCALAR.match(text, at)
        return match.end() if match else -1
    depth = 0
    for match in TOKEN.finditer(text, at):
        mark = match[0]
        if mark[0] == '"':
            if not match["closed"]:
                return -1
        else:
            depth += 1 if mark in "[{" else -1
        if depth <= 0:
            return match.end()
    return -1


def reason(error: Exception, start: int = 0) -> str:
    """Why a row cannot be read. `start`: where in the decoded text the row began."""
    if isinstance(error, RecursionError):
        return "arrays and objects within each other too deep"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, character {error.pos - start} of the row"
    return str(error)


def after_blanks(text: str, at: int) -> int:
    """The first position from `at` on that is no blank."""
    if " " < text[at : at + 1] < "\x7f":
        return at
    match = BLANKS.match(text, at)
    assert match, "it matches the empty text, too"
    return match.end()
