"""How serious a line of a log is: by its level where it names one, and by words of failure.

A level is what a logger wrote; words of failure are how people name trouble: "Connection refused" has no level, and
"INFO ... failed to renew the lease" is more than its level says.
"""

import functools
import itertools
import re

PLAIN, WARNING, ERROR, FATAL = range(4)
QUIET, FAILURE, NOTHING = "quiet", "failure", "nothing"  # what a word may say besides

LEVELS = {
    **dict.fromkeys(["fatal", "panic", "emerg", "emergency", "alert", "crit", "critical", "severe", "oops"], FATAL),
    **dict.fromkeys(["err", "error", "errors"], ERROR),
    **dict.fromkeys(["warn", "warning", "warnings"], WARNING),
    **dict.fromkeys(["info", "notice", "debug", "trace", "verbose", "fine", "finer", "finest"], QUIET),
}
LETTERS = {b"F": FATAL, b"E": ERROR, b"W": WARNING, b"I": QUIET, b"D": QUIET, b"V": QUIET}  # levels of Android
FAILURES = frozenset(
    """abnormal abort aborted aborting aborts bug broken cannot compromised corrupt corrupted corruption crash crashed
    crashes crashing dead deadlock denied died disconnected down dropped exceeded expired fault faults faulty forbidden
    halt halted hang hung illegal inaccessible invalid killed leak leaked lockup lost malformed mismatch missing oom
    overflow overrun rejected refused rollback segfault stuck terminated timeout timeouts traceback unable unauthorised
    unauthorized unavailable unexpected unhandled unreachable unrecoverable unresponsive violation""".split()  # noqa: SIM905 (as a list it takes a line a word)
)
FAILURE_ENDS = ("error", "errors", "exception", "exceptions", "failure", "failures", "failed", "throwable")
PHRASES = frozenset(
    """no_space no_route no_such not_found not_responding not_available not_permitted not_allowed timed_out time_out
    not_reached no_response could_not couldn_t can_t can_not core_dump core_dumped out_of break_in segmentation_fault
    assertion_failed""".split()  # noqa: SIM905
)
FIRST_OF_PHRASES = frozenset(phrase.partition("_")[0] for phrase in PHRASES)
WORD = re.compile("[A-Za-z]+")


def severity(text: bytes) -> int:
    """The rank of a line, PLAIN to FATAL; `text` is the line in UTF-8, its values masked or not.

    FATAL, ERROR: it names such a level, or words of failure and no level. WARNING: it names that level, or such words
    beside a level below it. A line of INFO about a "fatal error" is a warning, too.
    """
    words = WORD.findall(text.decode("latin-1"))
    said = {_said(word) for word in words} | {_letter(word) for word in text.split(None, 6)[:6]}
    is_bad = FAILURE in said or FATAL in said or ERROR in said or _has_phrase(words)
    if QUIET in said:
        return WARNING if is_bad or WARNING in said else PLAIN
    if FATAL in said:
        return FATAL
    if ERROR in said or (is_bad and WARNING not in said):
        return ERROR
    return WARNING if WARNING in said else PLAIN


@functools.lru_cache(1 << 16)
def _said(word: str) -> int | str:
    """What a word alone says of a line."""
    word = word.lower()
    if word in LEVELS:
        return LEVELS[word]
    is_failure = word in FAILURES or word.startswith("fail") or word.endswith(FAILURE_ENDS)
    return FAILURE if is_failure else NOTHING


def _letter(word: bytes) -> int | str:
    """What a level of one letter says, alone or before a tag, as in E/Zygote."""
    return LETTERS.get(word[:1], NOTHING) if len(word) == 1 or (word[1:2] == b"/" and len(word) > 3) else NOTHING


def _has_phrase(words: list[str]) -> bool:
    """Whether two words in a row name trouble."""
    words = [word.lower() for word in words]
    if FIRST_OF_PHRASES.isdisjoint(words):
        return False
    return any(f"{first}_{second}" in PHRASES for first, second in itertools.pairwise(words))
