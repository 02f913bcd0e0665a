"""Text from elsewhere made safe to show on a terminal: characters that would steer the terminal, or hide or reorder
text, are replaced by their escapes.

A model's answer, a log, a file's name and a server's reply may all hold codes such as ESC ] 0, which sets a window's
title, or marks that turn a line around.
"""

import unicodedata

from rich.cells import cell_len, set_cell_size

STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, formats (bidi overrides), surrogates, line and paragraph ends
JOINERS = "\u200c\u200d"  # of emoji, and of letters of Persian and Hindi
SAFE = "\n\t" + JOINERS


def printable(text: str, one_line: bool = False) -> str:
    """The text with every character of a category in STEERING, but for those in SAFE, written as \\x1b or \\u202e.
    `one_line`: line ends and tabs, too, so that a name cannot pass for a line of ours.
    """
    safe = JOINERS if one_line else SAFE
    return "".join(c if unicodedata.category(c) not in STEERING or c in safe else ascii(c)[1:-1] for c in text)


def shortened(name: str, width: int) -> str:
    """A name in so many cells: its beginning and its end, for the names of a series differ there."""
    if cell_len(name) <= width:
        return name
    end = (width - 1) // 2
    tail = set_cell_size(name[::-1], end)[::-1]
    return f"{set_cell_size(name, width - 1 - end).rstrip()}…{tail.lstrip()}"
