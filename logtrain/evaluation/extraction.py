"""What an answer in free text says: a label of a closed set, a log template, a short answer, a JSON value.

Models answer "The log is **abnormal**, because ..." where "abnormal" was asked for, so what counts is read by rules,
the same for every model. Where a rule reads nothing the answer is unread: it is wrong, and is counted.

Of every answer what stands in <think>...</think>, and what precedes a </think> alone, is left out first. Then

    label       the first of these that reads one: the whole answer, but for case, marks and quotes; the first label
                after the last "answer:", "label:", "category:", "class:", "classification:" or "verdict:" near the
                beginning of a line, on that line; the value of such a name in a JSON object; the only label in the text
                as whole words, longer ones first.
                A label after "not", "no", "non", "never", "without", "neither", "nor" or "n't", or up to three words
                behind it, is no mention; of two labels it means the other. Several different ones are none.
    template    the value of "template" (or "log_template", "event_template") in a JSON object; else the text after the
                last "template:" near the beginning of a line, else the only code span, else the only line of the only
                code block, else the only line of the answer; without backticks and quotes around all of it.
    short       the value of "answer" in a JSON object, else the text after the last "answer:" near the beginning of a
                line, to the line's end; else the whole answer.
    JSON        the last object or array in a code block that is JSON, else the first in the text that is.

Every rule takes time proportional to the answer's length, and no answer can make one raise.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from logtrain.core.untrusted import DECODER

MOST_CHARS = 100_000  # of an answer that are read
MOST_TRIED = 100  # braces and brackets at which JSON may begin
THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.S)
FENCE = "```"
OPENING = re.compile(r"[{\[]")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LABEL_NAMES = ("answer", "label", "category", "class", "classification", "verdict")
TEMPLATE_NAMES = ("template", "log_template", "event_template")
NEGATION = (
    r"(?:\b(?:not|no|non|never|without|neither|nor)|n['\u2019]t)[\s\-*_]+"
    r"(?:(?!(?:but|rather|EITHER)\b)[a-z]+\s+){0,3}[*_\"'`]*\Z"
)
NEAR = 50  # characters before a label in which it may be negated
MARKS = " \t\r\n*_`\"'.,:;!()[]{}#>"


def label(answer: str, words: Mapping[str, str]) -> str | None:
    """The label that an answer gives; None where none can be read. `words`: {what stands for a label: the label}."""
    text = spoken(answer).casefold()
    known = {word.casefold().strip(): meant for word, meant in words.items()}
    if (whole := text.strip(MARKS)) in known:
        return known[whole]
    if first := next(mentions(after_mark(text, LABEL_NAMES), known), None):
        return first
    found = json_value(text, dict) or {}
    values = (str(found[name]).strip(MARKS) for name in LABEL_NAMES if name in found)
    if said := next((value for value in values if value in known), None):
        return known[said]
    told = set(mentions(text, known))
    return told.pop() if len(told) == 1 else None


def mentions(text: str, known: Mapping[str, str]) -> Iterator[str]:
    """The label of each of its words in a text of folded letters; a negated one of two is the other."""
    either = "|".join(re.escape(word) for word in sorted(known, key=len, reverse=True))
    negation = re.compile(NEGATION.replace("EITHER", either))
    labels = set(known.values())
    for found in re.finditer(rf"(?<!\w)(?:{either})(?!\w)", text):
        meant = known[found[0]]
        if not negation.search(text[max(0, found.start() - NEAR) : found.start()]):
            yield meant
        elif len(labels) == 2:
            yield next(other for other in labels if other != meant)


def template(answer: str) -> str | None:
    """The log template that an answer gives; None where none can be read."""
    text = spoken(answer)
    found = json_value(text, dict)
    named = (found[name] for name in TEMPLATE_NAMES if found and isinstance(found.get(name), str))
    said = next(named, None) or after_mark(text, ("template",))
    if not said:
        blocks, spans = code_blocks(text), SPAN.findall(text)
        candidates = spans if len(spans) == 1 and not blocks else nonblank(blocks[0] if len(blocks) == 1 else text)
        said = candidates[0] if len(candidates) == 1 else ""
    return unquoted(said) or None


def short_answer(answer: str) -> str | None:
    """The short answer that an answer gives; None for a blank one."""
    text = spoken(answer)
    found = json_value(text, dict)
    value = found.get("answer") if found else None
    said = str(value) if isinstance(value, str | int | float) else after_mark(text, ("answer",)) or text
    return said.strip() or None


def json_value(answer: str, kind: type | tuple[type, ...] = (dict, list)) -> Any | None:
    """The JSON object or array that an answer gives; None where there is none. `kind`: dict, list or both."""
    for block in reversed(code_blocks(answer)):
        if (value := first_json(block, kind)) is not None:
            return value
    return first_json(answer, kind)


def first_json(text: str, kind: type | tuple[type, ...]) -> Any | None:
    """The first JSON value of a kind in a text, None where there is none in the first `MOST_TRIED` places."""
    at, tried = 0, 0
    while tried < MOST_TRIED and (found := OPENING.search(text, at)):
        tried += 1
        try:
            value, at = DECODER.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            at = found.end()
            continue
        if isinstance(value, kind):
            return value
    return None


def spoken(answer: str) -> str:
    """An answer without what was only thought."""
    text = THOUGHT.sub("", answer[:MOST_CHARS])
    return text.rpartition("</think>")[2]


def after_mark(text: str, names: Sequence[str]) -> str:
    """What follows the last `NAME:` before which a line has at most four words, to the line's end; "" without one."""
    pattern = (
        rf"^(?:[^\w\n]|_){{0,20}}(?:\w+[ \t]+){{0,4}}(?:{'|'.join(names)})[*_\"']*[ \t]*[:=][ \t]*[*_]*[ \t]*(\S[^\n]*)"
    )
    found = list(re.finditer(pattern, text, re.I | re.M))
    return found[-1][1].strip() if found else ""


def code_blocks(text: str) -> list[str]:
    """What stands between each two lines that begin with three backticks."""
    blocks: list[str] = []
    inside: list[str] | None = None
    for line in text.splitlines():
        if not line.lstrip().startswith(FENCE):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside = []
        else:
            blocks.append("\n".join(inside))
            inside = None
    return blocks


def nonblank(text: str) -> list[str]:
    """The lines of a text that are not blank and no fence of code."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(FENCE)]


def unquoted(text: str) -> str:
    """A text without the backticks or quotes around all of it."""
    text = text.strip()
    while len(text) > 1 and text[0] == text[-1] and text[0] in "`\"'":
        text = text[1:-1].strip()
    return text
