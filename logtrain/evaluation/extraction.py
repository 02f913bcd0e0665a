"""What an answer in free text says: a label of a closed set, a log template, a short answer, JSON values.

Models answer "The log is **abnormal**, because ..." where "abnormal" was asked for, so what counts is read by rules,
the same for every model. Where a rule reads nothing the answer is unread: it is wrong, and is counted.

Of every answer what stands in <think>...</think> (or thinking, thought, reasoning, reflection), and what precedes a
closing one alone, is left out first; so are characters without a width. Where there is an <answer>...</answer> (or
label, template), the last of them is all of the answer. Then

    label       the first of these that reads one: the whole answer, but for case, marks and quotes; the first label
                behind the last "answer:", "label:", "category:", "class:", "classification:" or "verdict:", or "is" in
                place of the colon, near the beginning of a line, or behind "classify this as", on that line, or on the
                next if nothing else is on it; the last value of such a name, or of "prediction" or "result", in a JSON
                object, where of two labels true and false may say whether it is the one the name ends with; the label
                that the answer begins with before a comma, a semicolon or a dash; the one that is a sentence or line;
                the only one in the text as whole words, longer ones first.
                A label is no mention directly after "not", "no", "without", "rather than" or another of `NEGATION`, or
                up to seven words after it in the same clause, nor before ": no" or "not detected"; of two labels it
                means the other. "normal or abnormal" is no mention of either. Several different ones are none.
    template    the last value of "template" (or "log_template", "event_template") in a JSON object; else what follows
                the last "template:" near the beginning of a line, there, or in the next line, or in the code block
                there, of which a code span at its beginning is all; else the only code span that is more than <*>, else
                the only line of the only code block, else the only line of the answer; without backticks, quotes and
                ** around all of it.
    short       the last value of "answer" in a JSON object, else what follows the last "answer:" near the beginning of
                a line, there or in the next line, else the whole answer; without what is around all of it, as above.
    JSON        the objects and arrays in the last code block that has any, else those in the text.

Names in JSON objects are compared without case, blanks, - and _, at any depth. Every rule takes time proportional to
the answer's length, and no answer can make one raise.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from logtrain.core.untrusted import DECODER

MOST_CHARS = 100_000  # of an answer that are read
MOST_TRIED = 200  # braces and brackets at which JSON may begin
MOST_DEPTH = 20  # JSON objects and arrays within each other in which names are looked for
THOUGHTS = "think|thinking|thought|reasoning|reflection"
THOUGHT = re.compile(rf"<({THOUGHTS})>.*?(?:</\1>|\Z)", re.S | re.I)
END_OF_THOUGHT = re.compile(rf"</(?:{THOUGHTS})>", re.I)
TAGS = ("answer", "label", "template")
WITHOUT_WIDTH = str.maketrans("", "", "\u00ad\u200b\u200c\u200d\u2060\ufeff")
FENCES = ("```", "~~~")
OPENING = re.compile(r"[{\[]")
SPAN = re.compile(r"(?<![`\w])(`{1,2})(?![`\s])([^`\n]*[^`\s])\1(?!`)")
FIRST_SPAN = re.compile(r"(`{1,2})(?![`\s])([^`\n]*[^`\s])\1(?!`)")
QUOTES = {"`": "`", '"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb"}
FOLLOWING = re.compile(r"(?:\*\*|__|[*_])?\s*(?:(?:```|~~~)[^\n]*\n\s*)?([^\n]*)")  # what follows a mark
LABEL_NAMES = ("answer", "label", "category", "class", "classification", "verdict")
JSON_LABEL_NAMES = (*LABEL_NAMES, "finalanswer", "prediction", "predictedlabel", "result")
TEMPLATE_NAMES = ("template", "log_template", "event_template", "logtemplate", "eventtemplate")
OPENERS = " \t=([{:,"  # what stands before a quote that opens
COLON = r"(?:is[ \t]*)?[:=]|is(?=[ \t]*[`\"\u201c])"
COPULA = r"is\b[ \t]*:?|[:=]|[-\u2013\u2014](?=[ \t])"
CLASSIFIED = r"|classif\w+(?:[ \t]+[^\s.,;:]+){0,5}[ \t]+as\b"
NEGATION = (
    r"(?:\b(?:not|no|non|nothing|never|without|cannot|neither|nor|unlikely|hardly|isnt|arent|wasnt|doesnt|dont|didnt"
    r"|far\s+from|rather\s+than|instead\s+of|(?:lack|absence|free)\s+of)|n['\u2019]t)[\s\-*_]+"
    r"(?:(?!(?:but|rather|because|since|whether|if|and|which|so|EITHER)\b)[a-z]+\s+){0,7}[*_\"'`]*\Z"
)
NEAR = 80  # characters before a label in which it may be negated
DENIAL = re.compile(
    r"[\"'*`_]*(?:\s+\w+){0,2}(?:\s*[:=?]+[\s*_\"'`]*(?:no|none|false)\b(?=[*_\"'`]*\s*(?:[.,;!)}\n]|\Z))"
    r"|(?:\s*[:=?]+)?\s+not\s+(?:been\s+)?(?:detected|found|present|observed|indicated)\b)"
)
MARKS = " \t\r\n*_`\"'\u201c\u201d\u2018\u2019\u00ab\u00bb.,:;!()[]{}#>-"


def label(answer: str, words: Mapping[str, str]) -> str | None:
    """The label that an answer gives; None where none can be read. `words`: {what stands for a label: the label}."""
    text = folded(spoken(answer))
    known = {folded(word).strip(): meant for word, meant in words.items()}
    if (whole := text.strip(MARKS)) in known:
        return known[whole]
    told = list(mentions(text, known))
    for start, stop in reversed(list(marked(text, LABEL_NAMES, COPULA, CLASSIFIED))):
        first = bisect_left(told, (start, ""))
        if first < len(told) and told[first][0] < stop:
            return told[first][1]
    if said := last_known(label_values(text, known), known):
        return said
    if told and begins_with_one(text, known):
        return told[0][1]
    alone = {known[each] for piece in re.split(r"[.!\n]+", text) if (each := piece.strip(MARKS)) in known}
    return the_only(alone) or the_only({meant for _, meant in told})


def folded(text: str) -> str:
    """A text as labels are looked for in it: without case and width."""
    return unicodedata.normalize("NFKC", text).casefold()


def any_of(known: Mapping[str, str]) -> str:
    """A pattern of the words of labels, longer ones first."""
    return "|".join(re.escape(word) for word in sorted(known, key=len, reverse=True))


def begins_with_one(text: str, known: Mapping[str, str]) -> bool:
    """Whether a folded text begins with a label before a dash, or before a comma or semicolon and no other label."""
    either = any_of(known)
    pause = rf"[,;](?!\W*(?:{either}))|\s+[-\u2013\u2014]\s"
    return bool(re.match(rf"[^\w\n]*(?:{either})[*_\"'`]*(?:{pause})", text))


def the_only(labels: set[str]) -> str | None:
    """The label of a set of one."""
    return next(iter(labels)) if len(labels) == 1 else None


def mentions(text: str, known: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """(place, label) of each of its words in a folded text; a negated one of two is the other."""
    either = any_of(known)
    alternative = r"[\"'*`]*(?:\s+(?:or|vs\.?|versus)\s+|\s*[/|]\s*)(?:an?\s+)?[\"'*`]*"
    negation = re.compile(NEGATION.replace("EITHER", either))
    labels = set(known.values())
    # Not in an identifier, as "is_normal" is, but within the underscores of emphasis.
    whole = rf"(?<![^\W_])(?<![^\W_]_)(?:{either})(?:{alternative}(?:{either}))*(?![^\W_]|_[^\W_])"
    for found in re.finditer(whole, text):
        meant = the_only({known[word] for word in re.findall(either, found[0])})
        if meant is None:
            continue
        negated = negation.search(text, max(0, found.start() - NEAR), found.start())
        if not negated and not DENIAL.match(text, found.end()):
            yield found.start(), meant
        elif len(labels) == 2:
            yield found.start(), next(other for other in labels if other != meant)


def label_values(text: str, known: Mapping[str, str]) -> Iterator[str]:
    """What JSON objects of a text have under the names of labels; of two labels the one that true or false means."""
    labels = set(known.values())
    for found in objects(json_values(text)):
        for key, value in found.items():
            last = re.split(r"[\s_-]", key)[-1]
            word = last if last in known else last.removeprefix("is")
            if isinstance(value, bool) and word in known and len(labels) == 2:
                yield next(other for other, meant in known.items() if (meant == known[word]) == value)
            elif plain(key) in JSON_LABEL_NAMES and isinstance(value, str | int | float | list):
                yield str(value)


def last_known(values: Iterable[str], known: Mapping[str, str]) -> str | None:
    """The label of the last of these texts that has one alone."""
    read = (known.get(text.strip(MARKS)) or the_only({meant for _, meant in mentions(text, known)}) for text in values)
    return next(filter(None, reversed(list(read))), None)


def template(answer: str) -> str | None:
    """The log template that an answer gives; None where none can be read."""
    text = spoken(answer)
    if named := values_of(text, TEMPLATE_NAMES):
        return unquoted(str(named[-1] or "")) or None
    said = after_mark(text, TEMPLATE_NAMES)
    if span := FIRST_SPAN.match(said):
        said = span[2]
    if not said:
        blocks, spans = code_blocks(text), [span[2] for span in SPAN.finditer(text) if span[2].strip("<*> ")]
        candidates = spans if len(spans) == 1 and not blocks else nonblank(blocks[0] if len(blocks) == 1 else text)
        said = candidates[0] if len(candidates) == 1 else ""
    return unquoted(said) or None


def short_answer(answer: str) -> str | None:
    """The short answer that an answer gives; None for a blank one."""
    text = spoken(answer)
    if values := values_of(text, ("answer",)):
        listed = values[-1] if isinstance(values[-1], list) else [values[-1]]
        said = ", ".join(str(one).lower() if isinstance(one, bool) else str(one) for one in listed if one is not None)
        return said.strip() or None
    return unquoted(after_mark(text, ("answer",)) or text) or None


def json_values(text: str) -> list[Any]:
    """The JSON objects and arrays that a text gives."""
    for block in reversed(code_blocks(text)):
        if values := list(json_within(block)):
            return values
    return list(json_within(text))


def json_within(text: str) -> Iterator[Any]:
    """The JSON objects and arrays of a text that begin at its first `MOST_TRIED` places."""
    at, tried = 0, 0
    while tried < MOST_TRIED and (found := OPENING.search(text, at)):
        tried += 1
        try:
            value, at = DECODER.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            at = found.end()
            continue
        yield value


def objects(value: Any, depth: int = MOST_DEPTH) -> Iterator[dict[str, Any]]:
    """The JSON objects of a value, an outer one before those in it."""
    if isinstance(value, dict):
        yield value
    if depth and isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from objects(each, depth - 1)


def plain(name: str) -> str:
    """A name as those in JSON objects are compared."""
    return re.sub(r"[\s_-]", "", name).casefold()


def values_of(text: str, names: Sequence[str]) -> list[Any]:
    """What the JSON objects of a text have under these names."""
    wanted = set(map(plain, names))
    return [value for found in objects(json_values(text)) for key, value in found.items() if plain(key) in wanted]


def spoken(answer: str) -> str:
    """An answer without what was only thought, and of that what stands in the last element of `TAGS`."""
    text = END_OF_THOUGHT.split(THOUGHT.sub("", answer))[-1][:MOST_CHARS].translate(WITHOUT_WIDTH)
    for name in TAGS:
        stop = text.rfind(f"</{name}>")
        start = text.rfind(f"<{name}>", 0, max(stop, 0))
        if start >= 0:
            return text[start + len(name) + 2 : stop]
    return text


def after_mark(text: str, names: Sequence[str]) -> str:
    """What follows the last `NAME:` near the beginning of a line, to the line's end, else in the next line that is not
    blank or a fence of code; "" without one.
    """
    found = [said for start, stop in marked(text, names, COLON) if (said := text[start:stop].strip())]
    return found[-1] if found else ""


def marked(text: str, names: Sequence[str], colon: str, more: str = "") -> Iterator[tuple[int, int]]:
    """(start, stop) of what follows each name near the beginning of a line. `more`: other marks, a pattern."""
    mark = rf"(?:{'|'.join(names)})[*_\"']*[ \t]*(?:{colon}){more}"
    words = r"^(?:[^\w\n]|_){0,20}(?:[\w'\u2019]+[,.!]?[ \t]+){0,8}"
    for found in re.finditer(rf"{words}(?:{mark})", text, re.I | re.M):
        said = FOLLOWING.match(text, found.end())
        assert said
        yield said.span(1)


def code_blocks(text: str) -> list[str]:
    """What stands between each two lines that begin with three backticks, or with three tildes."""
    blocks: list[str] = []
    inside: list[str] = []
    fence = ""
    for line in text.splitlines():
        begins = line.lstrip()[:3]
        if fence and begins == fence:
            blocks.append("\n".join(inside))
            fence = ""
        elif fence:
            inside.append(line)
        elif begins in FENCES:
            fence, inside = begins, []
    return blocks


def nonblank(text: str) -> list[str]:
    """The lines of a text that are not blank and no fence of code."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(FENCES)]


def unquoted(text: str) -> str:
    """A text without the backticks, quotes or ** around all of it."""
    text = text.strip()
    while True:
        if len(text) > 4 and text[:2] == text[-2:] == "**" and "*" not in text[2:-2].replace("<*>", ""):
            text = text[2:-2].strip()
        elif len(text) > 1 and is_quoted(text):
            text = text[1:-1].strip()
        else:
            return text


def is_quoted(text: str) -> bool:
    """Whether quotes are around all of a text, as they are not around "a" and "b"."""
    mark = QUOTES.get(text[0])
    before, another, _ = text[1:-1].partition(mark or "\n")
    return mark == text[-1] and (not another or not before or before[-1] in OPENERS)
