"""Numbers as people read them."""

import re
import time

SUFFIXES = ("bytes", "kB", "MB", "GB", "TB", "PB")


def size(num_bytes: float) -> str:
    """A number of bytes with a decimal prefix and three digits: 999 bytes, 61.2 kB, 16.1 GB."""
    value, at = float(num_bytes), 0
    while value >= 999.5 and at < len(SUFFIXES) - 1:
        value, at = value / 1000, at + 1
    return f"{value:.0f} {SUFFIXES[at]}" if at == 0 or value >= 99.95 else f"{value:.3g} {SUFFIXES[at]}"


def rate(num_bytes: float, began: float) -> str:
    """Bytes a second since a moment of time.monotonic(), as people read it: 1.2 GB/s."""
    return f"{size(num_bytes / max(time.monotonic() - began, 1e-9))}/s"


def count_of(name: str, text: str) -> int:
    """The number that a user wrote for the setting `name`: 5M, 300k, 1.5B or 5_000_000. Raises ValueError for another
    text, and for less than 1.
    """
    found = re.fullmatch(r"([0-9_]+(?:\.[0-9]+)?)([kMB]?)", text)
    count = (
        round(float(found[1].replace("_", "") or 0) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[found[2]]) if found else 0
    )
    if not 1 <= count < 2**53:
        raise ValueError(f"{name} = {text!r}: expected a number of at least 1, as 5M, 300k or 5_000_000")
    return count
