"""Answers that are a JSON object whatever the model would say: at each token, which of the vocabulary may come next.

An automaton reads the answer character by character (RFC 8259). A token may come next if it leads to another state and
the object can still be closed with the tokens that are left after it, each of one character. So the object is always
complete: near its last token an answer is left no choice but to close what is open.

Which tokens a state allows is computed once for each state. Inside a string that is nearly all of them, so only those
with a quote, a backslash or a control character are looked at one by one.

Shapes in names: V vocabulary.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from logtrain.text.tokenizer import Tokenizer

MAX_DEPTH = 24  # objects and lists within each other
LONGEST_RUN = {"space": 48, "digit": 20, "exponent": 3}  # characters: a model could go on for ever with these
SPACES = " \t\n\r"
DIGITS = "0123456789"
CACHED = 512  # states whose tokens are remembered; Llama 3's vocabulary takes 128 kB for each
NEEDED = '{}[]":0truefalsn'  # every one of them must be a token, or an object could not be closed
ESCAPED = '"\\/bfnrt'
LITERALS = {"t": "rue", "f": "alse", "n": "ull"}
INSIDE = ("text", "key")  # the states within a string
AFTER_STRING = {"text": "after", "key": "colon"}
NUMBER: Mapping[str, Mapping[str, str]] = {  # state -> characters -> the next state
    "minus": {"0": "zero", "123456789": "digit"},
    "zero": {".": "point", "eE": "e"},
    "digit": {DIGITS: "digit", ".": "point", "eE": "e"},
    "point": {DIGITS: "fraction"},
    "fraction": {DIGITS: "fraction", "eE": "e"},
    "e": {"+-": "sign", DIGITS: "exponent"},
    "sign": {DIGITS: "exponent"},
    "exponent": {DIGITS: "exponent"},
}
WHOLE = ("zero", "digit", "fraction", "exponent")  # a number that may end here
LEFT = {"start": 2, "text": 1, "key": 3, "name": 4, "colon": 2, "value": 1, "minus": 1, "point": 1, "e": 1, "sign": 1}
"""Characters that a state needs beside the brackets that are open; others need none."""


class State(NamedTuple):
    """Where in a JSON object an answer is."""

    mode: str = "start"
    """What is being read: a word of LEFT, a number's of NUMBER, "\\\\text" after a backslash, "u3text" for three digits
    that are missing, "=rue" for letters that are, "name?" and "value?" after an opening bracket, "after" a value."""
    open: str = ""
    """The brackets that are open."""
    run: int = 0
    """Length of the run of spaces or digits that the answer ends in."""

    def left(self) -> int:
        """The least number of characters that complete the object."""
        mode, extra = self.mode, 0
        if mode[0] == "\\":
            mode, extra = mode[1:], 1
        elif mode[0] == "u" and mode[1:2].isdigit():
            mode, extra = mode[2:], int(mode[1])
        elif mode[0] == "=":
            extra = len(mode) - 1
        return len(self.open) + LEFT.get(mode, 0) + extra


def follow(state: State, text: str) -> State | None:
    """The state after more text, or None if no JSON object goes on so."""
    found: State | None = state
    for char in text:
        if found is None:
            break
        found = after(found, char)
    return found


@lru_cache(1 << 14)
def after(state: State, char: str) -> State | None:
    """The state after one more character, or None."""
    mode, is_open, run = state
    if mode in INSIDE or mode[0] in "\\" or (mode[0] == "u" and mode[1:2].isdigit()):
        return in_string(state, char)
    if mode[0] == "=":
        if char != mode[1]:
            return None
        return State("after" if len(mode) == 2 else f"={mode[2:]}", is_open)
    if mode in NUMBER:
        then = next((then for chars, then in NUMBER[mode].items() if char in chars), None)
        if then:
            count = run + 1 if then == mode else 1
            return State(then, is_open, count) if count <= LONGEST_RUN.get(then, LONGEST_RUN["digit"]) else None
        return after(State("after", is_open), char) if mode in WHOLE else None
    if char in SPACES:
        return State(mode, is_open, run + 1) if run < LONGEST_RUN["space"] and mode != "start" else None
    return structure(mode, is_open, char)


def in_string(state: State, char: str) -> State | None:
    """`after`, within a string."""
    mode, is_open, _ = state
    if mode[0] == "\\":
        if char == "u":
            return State(f"u4{mode[1:]}", is_open)
        return State(mode[1:], is_open) if char in ESCAPED else None
    if mode[0] == "u":
        count, inside = int(mode[1]) - 1, mode[2:]
        if char not in "0123456789abcdefABCDEF":
            return None
        return State(f"u{count}{inside}" if count else inside, is_open)
    if char == '"':
        return State(AFTER_STRING[mode], is_open)
    if char == "\\":
        return State(f"\\{mode}", is_open)
    return state if char >= " " else None


def structure(mode: str, is_open: str, char: str) -> State | None:
    """`after`, for a character that is neither in a string, a number or a word nor a space."""
    if mode in ("name", "name?") and char == '"':
        return State("key", is_open)
    if mode == "colon" and char == ":":
        return State("value", is_open)
    if mode == "after" and is_open and char == ",":
        return State("name" if is_open[-1] == "{" else "value", is_open)
    if char == "}" and mode in ("name?", "after") and is_open[-1:] == "{":
        return State("after", is_open[:-1])
    if char == "]" and mode in ("value?", "after") and is_open[-1:] == "[":
        return State("after", is_open[:-1])
    if mode == "start":
        return State("name?", "{") if char == "{" else None
    return value(is_open, char) if mode in ("value", "value?") else None


def value(is_open: str, char: str) -> State | None:
    """The state after the first character of a value."""
    if char in "{[":
        return State("name?" if char == "{" else "value?", is_open + char) if len(is_open) < MAX_DEPTH else None
    if char == '"':
        return State("text", is_open)
    if char in LITERALS:
        return State(f"={LITERALS[char]}", is_open)
    modes = {"-": "minus", "0": "zero"} | dict.fromkeys("123456789", "digit")
    return State(modes[char], is_open, 1) if char in modes else None


class Allowed(NamedTuple):
    """The tokens that may follow a state."""

    mask_V: Tensor
    """bool: whether a token may."""
    most_left: int
    """The most characters that complete the object after one of them."""


class JsonGrammar:
    """JSON objects in the tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, device: torch.device):
        """`vocab_size`: the number of logits. Raises ValueError for a tokenizer that cannot spell an object."""
        special = set(tokenizer.marks.values())
        count = min(vocab_size, tokenizer.vocab_size)
        pieces = [("" if id in special else piece) for id, piece in enumerate(pieces_of(tokenizer, count))]
        if missing := sorted(set(NEEDED) - set(pieces)):
            raise ValueError(f"the model's tokenizer has no token for {missing[0]!r}, so that it cannot write JSON")
        self.pieces, self.device = pieces, device
        self.by_first: dict[str, list[int]] = {}  # ids by the first character of their text
        self.marked: list[int] = []  # ids that may end a string, or must not be in one
        self.plain_V = torch.zeros(vocab_size, dtype=torch.bool)
        for id, piece in enumerate(pieces):
            if piece:
                self.by_first.setdefault(piece[0], []).append(id)
                self.plain_V[id] = is_plain = not any(char < " " or char in '"\\' for char in piece)
                if not is_plain:
                    self.marked.append(id)
        self.known: dict[State, Allowed] = {}

    def allowed(self, state: State, remaining: int) -> Tensor:
        """bool [V]: the tokens that may follow a state if the answer may have `remaining` more tokens."""
        found = self.known.pop(state, None) or self.compute(state, 1 << 30)
        self.known[state] = found  # the last one used is the last one that is dropped
        if len(self.known) > CACHED:
            del self.known[next(iter(self.known))]
        return found.mask_V if found.most_left < remaining else self.compute(state, remaining).mask_V

    def compute(self, state: State, remaining: int) -> Allowed:
        """The tokens after which fewer than `remaining` characters complete the object."""
        mask_V, most = torch.zeros_like(self.plain_V), 0
        candidates = self.candidates(state)
        if state.mode in INSIDE and (left := state.left()) < remaining:
            mask_V, most = self.plain_V.clone(), left
        for id in candidates:
            if (then := follow(state, self.pieces[id])) and (left := then.left()) < remaining:
                mask_V[id], most = True, max(most, left)
        return Allowed(mask_V.to(self.device), most)

    def candidates(self, state: State) -> Iterator[int]:
        """The ids that must be looked at one by one."""
        if state.mode in INSIDE:
            yield from self.marked
            return
        for char, ids in self.by_first.items():
            if after(state, char):
                yield from ids


class JsonAnswer:
    """One answer that is to be a JSON object. state: where it is by now."""

    def __init__(self, grammar: JsonGrammar):
        self.grammar, self.state = grammar, State()

    def allowed(self, remaining: int, like_V: Tensor) -> Tensor:
        """bool [V] on the device of `like_V`: the tokens that may come next."""
        mask_V = self.grammar.allowed(self.state, remaining)
        assert mask_V.shape == like_V.shape
        return mask_V

    def add(self, id: int) -> None:
        """Go on by a token that was allowed."""
        state = follow(self.state, self.grammar.pieces[id])
        assert state is not None, "a token that the grammar does not allow"
        self.state = state

    @property
    def is_complete(self) -> bool:
        """Whether the object is closed."""
        return self.state.mode == "after" and not self.state.open


def pieces_of(tokenizer: Tokenizer, count: int) -> Iterator[str]:
    """The text that each of the first `count` ids adds to a text. Half a character is a replacement character, which no
    part of JSON's syntax is.
    """
    anchor = tokenizer.encode("a")
    start = len(tokenizer.decode(anchor))
    for id in range(count):
        yield tokenizer.decode([*anchor, id], skip_special=False)[start:]
