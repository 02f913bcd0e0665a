"""The entities of an answer about a log: addresses, paths, numbers, identifiers and references to lines; and which of
them the log does not have. A wrong one among right ones is what a reader cannot see.

    for entity in check(answer, log):
        if not entity.known: print(entity.text, answer[entity.start : entity.stop])

What counts as an entity is in entities.json, which the page reads too; `Source.has` and the page's entities.js decide
in the same way whether the log has it (tests/text/test_entities.py). An entity is known if the log has it as a whole:
31 is not known by 10.0.0.31, nor /var/lo by /var/log. Of what an answer may say in its own words these are known:

    1,234                       for 1234; 64 MB for 67108864; 9:05 for 09:05:11
    14 failed passwords         where 14 lines have one of these words
    OutOfMemory                 for Out of memory
    10.0.0.5:22                 where 10.0.0.5 and port 22 are there
    L12, lines 3-7              where the log has so many lines

Numbers of one digit, ordinals, the numbers of lists and names such as OpenSSH or SHA256 are no entities.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

RULES: dict[str, Any] = json.loads(Path(__file__).with_name("entities.json").read_text(encoding="utf-8"))
KINDS = [kind for kind, _ in RULES["kinds"]]
ENTITY = re.compile("|".join(f"({pattern})" for _, pattern in RULES["kinds"]), re.ASCII)
LIST_MARKER = re.compile(RULES["list_marker"], re.ASCII)
ORDINAL = re.compile(RULES["ordinal"], re.ASCII)
GENERAL = frozenset(RULES["general"])
UNITS: dict[str, int] = RULES["units"]
INTEGER = re.compile(r"\d+", re.ASCII)
UNIT = re.compile(r"[ \t]?([A-Za-z]{1,3})\b", re.ASCII)
WORDS_AFTER = re.compile(r"(?:[ \t\n]+[A-Za-z]+){1,4}", re.ASCII)
PARTS_OF_NAME = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", re.ASCII)
LEAST_WORD = 4  # letters of a word that is counted


class Entity(NamedTuple):
    """An entity of an answer."""

    text: str
    kind: str
    """line, ip, path, number or identifier"""
    start: int
    """where it begins in the answer"""
    stop: int
    known: bool
    """whether the log has it"""


class Source:
    """A log, and what else an answer may take its entities from."""

    def __init__(self, log: str, more: str = "", first: int = 1):
        """`more`: text that is not the log, such as the question. `first`: number of the log's first line."""
        self.lines = range(first, first + log.count("\n") + (not log.endswith("\n")))
        self.text = f"{log}\n{more}".replace("\\\\", "\\")
        self.lower = _lower(self.text)
        self.log_lower = _lower(log)

    def has(self, text: str, kind: str, after: str) -> bool:
        """Whether the source has an entity. `after`: what follows it in the answer."""
        if kind == "line":
            numbers = INTEGER.findall(text)
            if all(len(number) < 10 and int(number) in self.lines for number in numbers):
                return True
            return text[1] == "i" and all(map(self._finds_number, numbers))  # "line 873" of a program, in the log
        if kind == "number":
            return self._has_number(text, after)
        if kind == "ip":
            address, _, port = text.partition(":") if "." in text else (text, "", "")
            return self._finds(self.lower, _lower(text)) or bool(
                port and self._finds(self.lower, address) and self._finds_number(port)
            )
        name = _lower(text.replace("\\\\", "\\"))
        if self._finds(self.lower, name) or (name.endswith("s") and self._finds(self.lower, name[:-1])):
            return True
        words = " ".join(PARTS_OF_NAME.findall(text)).lower()
        return kind == "identifier" and " " in words and not INTEGER.search(text) and self._finds(self.lower, words)

    def _has_number(self, text: str, after: str) -> bool:
        plain = text.replace(",", "") if ":" not in text else text
        if self._finds_number(text) or self._finds_number(plain) or (":" in text and self._finds_number(f"0{text}")):
            return True
        unit = UNIT.match(after)
        if unit and (power := UNITS.get(unit[1].lower())) and _is_small_integer(plain):
            return any(self._finds_number(str(int(plain) * base**power)) for base in (1000, 1024))
        return _is_small_integer(plain) and self._is_count(int(plain), after)

    def _is_count(self, number: int, after: str) -> bool:
        """Whether so many lines have one of the words that follow, or there are so many lines."""
        found = WORDS_AFTER.match(after)
        words = [word for word in found[0].lower().split() if len(word) >= LEAST_WORD] if found else []
        if number == len(self.lines) and any(word.startswith("line") or word == "entries" for word in words):
            return True
        return any(self._count(word.removesuffix("s")) == number for word in words)

    def _count(self, word: str) -> int:
        """The number of lines of the log that have a word, as a part of one, too."""
        count, at = 0, self.log_lower.find(word)
        while at >= 0:
            count += 1
            end = self.log_lower.find("\n", at)
            at = self.log_lower.find(word, end) if end >= 0 else -1
        return count

    @staticmethod
    def _finds(where: str, text: str) -> bool:
        """Whether `text` occurs with no letter, digit, or part of an address beside it."""
        at = where.find(text)
        while at >= 0:
            before, after = where[max(at - 2, 0) : at], where[at + len(text) : at + len(text) + 2]
            cut = _is_alnum(text[0]) and _is_alnum(before[-1:])
            cut = cut or (_is_alnum(text[-1]) and _is_alnum(after[:1]))
            cut = cut or (_is_digit(text[0]) and _is_part(before[::-1]))
            if not cut and not (_is_digit(text[-1]) and _is_part(after)):
                return True
            at = where.find(text, at + 1)
        return False

    def _finds_number(self, text: str) -> bool:
        """Whether a number occurs, not inside of a longer one, of an address or of a word; a unit may follow."""
        at = self.lower.find(text)
        while at >= 0:
            before, after = self.lower[max(at - 2, 0) : at], self.lower[at + len(text) : at + len(text) + 4]
            cut = _is_alnum(before[-1:]) or _is_digit(after[:1]) or _is_part(before[::-1]) or _is_part(after)
            cut = cut or (len(text) <= 2 and (_is_part(before[::-1], ":") or _is_part(after, ":")))  # of a time
            if not cut and not (len(after) == 4 and after.isalpha()):
                return True
            at = self.lower.find(text, at + 1)
        return False


def check(answer: str, log: str, more: str = "", first: int = 1) -> list[Entity]:
    """The entities of an answer in their order; each says whether the log, or `more`, has it. `first`: the number of
    the log's first line.
    """
    source = Source(log, more, first)
    return [
        Entity(text, kind, start, stop, source.has(text, kind, answer[stop : stop + 80]))
        for text, kind, start, stop in _entities(answer)
    ]


def _entities(answer: str) -> Iterator[tuple[str, str, int, int]]:
    """(text, kind, start, stop) of each entity."""
    markers = {at for found in LIST_MARKER.finditer(answer) for at in range(*found.span())}
    for found in ENTITY.finditer(answer):
        kind, text, start = KINDS[(found.lastindex or 1) - 1], found[0], found.start()
        if kind != "line":
            text = text.rstrip(".,:-")
        is_plain = kind == "number" and (len(text) == 1 or ORDINAL.match(answer[start + len(text) :]))
        if is_plain or start in markers or text.lower() in GENERAL or not text:
            continue
        yield text, kind, start, start + len(text)


def _lower(text: str) -> str:
    """The text with A to Z alone in lower case, as the page has it: str.lower knows more, and makes of some two."""
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def _is_small_integer(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9


def _is_alnum(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _is_digit(character: str) -> bool:
    return character.isascii() and character.isdecimal()


def _is_part(two: str, mark: str = ".") -> bool:
    """Whether a dot and a digit stand there, in this order away from a text, which is part of an address then."""
    return len(two) >= 2 and two[0] == mark and _is_digit(two[1])
