"""Text from elsewhere, to be shown on a terminal: what would steer it, or hide or reorder text, is its escape.

A model's answer, a log, a file's name, a server's reply: any of them may hold ESC ] 0 ; ... or turn a line around.
"""

import unicodedata

STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, formats (bidi overrides), surrogates, line and paragraph ends
SAFE = "\n\t\u200c\u200d"  # U+200C and U+200D join emoji, and letters of Persian and Hindi


def printable(text: str) -> str:
    return "".join(c if unicodedata.category(c) not in STEERING or c in SAFE else ascii(c)[1:-1] for c in text)
