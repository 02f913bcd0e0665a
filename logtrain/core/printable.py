"""Text from elsewhere, to be shown on a terminal: what would steer it, or hide or reorder text, is its escape.

A model's answer, a log, a file's name, a server's reply: any of them may hold ESC ] 0 ; ... or turn a line around.
"""

import unicodedata

STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, formats (bidi overrides), surrogates, line and paragraph ends
JOINERS = "\u200c\u200d"  # of emoji, and of letters of Persian and Hindi
SAFE = "\n\t" + JOINERS


def printable(text: str, one_line: bool = False) -> str:
    """`one_line`: line ends and tabs, too, as their escapes."""
    safe = JOINERS if one_line else SAFE
    return "".join(c if unicodedata.category(c) not in STEERING or c in safe else ascii(c)[1:-1] for c in text)
