"""Numbers as people read them."""

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
