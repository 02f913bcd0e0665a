"""Whether an answer may become a row, and the turns that it gives. What is wrong is a reason, a colon and the details:

    cut          it is longer than max_new_tokens, or the server ended it otherwise
    unprintable  it has control characters, or marks that hide or turn text
    refusal      it says that it will not
    json         a task in JSON, and there is no whole object in it
    schema       the object is another than the task's
    length       shorter or longer than the task allows
    language     it is in another one than asked for
    copy         most of its lines are the log's
    ungrounded   too many of its addresses, paths, numbers and identifiers are not in the log (text/entities.py)

A near-duplicate of an earlier row is found at the end (rows.py), in the order of jobs, so that it does not depend on
which answer came first.
"""

import re
from typing import NamedTuple

from logtrain.core.printable import printable
from logtrain.synthesis.chunks import Chunk
from logtrain.synthesis.config import Language, SynthesiseConfig
from logtrain.synthesis.json_schema import mismatch, read_answer, spelled, strings_of
from logtrain.synthesis.prompts import Task
from logtrain.text.chat_template import Turn
from logtrain.text.entities import check

REFUSAL = re.compile(
    r"\bas an? (ai|large language|language) (language )?(model|assistant)\b"
    r"|\A\W*(i'?m|i am|we are|we're) (very |really )?sorry\b"
    r"|\A\W*(sorry|unfortunately|i apologi[sz]e)\b.{0,40}\bi (can'?t|can ?not|am unable|am not able)"
    r"|\A\W*i (can'?t|can ?not|won'?t|am unable to|am not able to) (assist|help|comply|provide|fulfil|do that|answer)"
    r"|\bagainst (my|our|openai'?s) (guidelines|policy|policies|programming)\b",
    re.IGNORECASE,
)
REFUSED_WITHIN = 400  # characters of the beginning: further on such words may be about the log
MOST_COPIED = 0.5  # of an answer's lines
LEAST_LINE = 20  # characters of a line that can be copied
COMMON = {
    "en": "the and of to is in that for was with this are not from by it on which no be has",
    "de": "der die das und ist nicht mit den von ein eine zu im auf für wird sich des dem dass",
    "fr": "le la les des est une dans que pour pas sur avec par du et qui sont au ce plus",
    "es": "el la los las que una con por para del es en se no un su como este más hay",
}
WORDS = {language: frozenset(words.split()) for language, words in COMMON.items()}
FEWEST_LETTERS = 20  # fewer tell no language
FEWEST_COMMON = 4  # words of a language by which it is told
LEAST_SHARE = 0.9  # of letters in a language's script
WORD = re.compile(r"[^\W\d_]+")
HAN = re.compile(r"[\u3400-\u9fff]")
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")


class Verdict(NamedTuple):
    """Of an answer."""

    rejected: str
    """why it is no row; "" where it is one"""
    turns: tuple[Turn, ...]
    """the row's; () where it is none"""


class Wrong(Exception):
    """An answer is no row; its text says why."""


def judge(config: SynthesiseConfig, task: Task, chunk: Chunk, question: str, text: str, finish: str) -> Verdict:
    """Look at an answer. `question`: what the row asks. `finish`: why the answer ended. Pure."""
    try:
        if finish != "stop":
            raise Wrong(f"cut: {finish}")
        text = text.strip()
        if printable(text) != text:
            raise Wrong("unprintable: control characters, or marks that hide text")
        if REFUSAL.search(text[:REFUSED_WITHIN].replace("\u2019", "'")):
            raise Wrong(f"refusal: {text[:80]}")
        pairs = read_pairs(task, question, text)
        for i, (asked, said) in enumerate(pairs):
            if not task.least_chars <= len(said) <= task.most_chars:
                raise Wrong(f"length: {len(said):,} characters, not {task.least_chars:,} to {task.most_chars:,}")
            if task.form == "turns" and not asked.strip():
                raise Wrong(f"length: question {i + 1} is empty")
        said = "\n".join(words_of(task, pairs))
        check_language(said, config.language)
        check_copied(said, chunk.text)
        asked = "\n".join(question for question, _ in pairs)
        if config.grounded:
            check_grounded(said if task.ask else f"{asked}\n{said}", chunk.text, question, config.grounded)
        return Verdict("", as_turns(pairs, chunk, config.rows == "nlplog"))
    except Wrong as wrong:
        return Verdict(printable(str(wrong), one_line=True), ())


def read_pairs(task: Task, question: str, text: str) -> list[tuple[str, str]]:
    """(question, answer) of each turn. Raises Wrong."""
    if task.form == "text":
        return [(question, text)]
    try:
        value = read_answer(text)
    except ValueError as error:
        raise Wrong(f"json: {error}") from None
    if wrong := mismatch(value, task.schema):
        raise Wrong(f"schema: {wrong}")
    if task.form == "json":
        return [(question, spelled(value))]
    return [(turn["question"].strip(), turn["answer"].strip()) for turn in value["turns"]]


def words_of(task: Task, pairs: list[tuple[str, str]]) -> list[str]:
    """What is said, without the signs of JSON."""
    answers = [answer for _, answer in pairs]
    return [text for answer in answers for text in strings_of(read_answer(answer))] if task.form == "json" else answers


def as_turns(pairs: list[tuple[str, str]], chunk: Chunk, has_log: bool) -> tuple[Turn, ...]:
    """The turns of a row: the first question has the log behind it, unless it has it already."""
    turns: list[Turn] = []
    for asked, said in pairs:
        log = "" if turns or has_log else f"\n{chunk.text}"
        turns += Turn("user", f"{asked}{log}"), Turn("assistant", said)
    return tuple(turns)


def check_language(text: str, language: Language) -> None:
    """Raises Wrong for a text in another language, as far as its letters and most common words tell."""
    letters = sum(map(str.isalpha, text))
    if language == "any" or letters < FEWEST_LETTERS:
        return
    script = HAN if language == "zh" else LATIN
    share = len(script.findall(text)) / letters
    if share < (0.3 if language == "zh" else LEAST_SHARE):  # logs in an answer are Latin
        raise Wrong(f"language: {share:.0%} of the letters are of {language}'s")
    if language == "zh":
        return
    words = [word.lower() for word in WORD.findall(text)]
    counts = {name: sum(word in common for word in words) for name, common in WORDS.items()}
    best = max(counts, key=lambda name: counts[name])
    if counts[best] >= FEWEST_COMMON and counts[best] > counts[language]:
        raise Wrong(f"language: {best} by its most common words")


def check_copied(text: str, log: str) -> None:
    """Raises Wrong for a text that is the log again for the most part."""
    lines = [line.strip(" \t`>*-") for line in text.splitlines() if len(line.strip()) >= LEAST_LINE]
    copied = sum(line in log for line in lines)
    if len(lines) >= 4 and copied > MOST_COPIED * len(lines):
        raise Wrong(f"copy: {copied} of {len(lines)} lines are the log's")


def check_grounded(text: str, log: str, more: str, least: float) -> None:
    """Raises Wrong for a text of whose entities fewer than this share are known; lines that are the log's are right."""
    own = "\n".join(line for line in text.splitlines() if len(line.strip()) < LEAST_LINE or line.strip() not in log)
    entities = check(own, log, more)
    unknown = [entity.text for entity in entities if not entity.known]
    if unknown and len(unknown) > (1 - least) * len(entities):
        shown = ", ".join(unknown[:5])
        raise Wrong(f"ungrounded: {len(unknown)} of {len(entities)} are not in the log: {shown}")
