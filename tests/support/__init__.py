"""Helpers of the tests, and where the checkout lies."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
RECIPES = LAUNCH / "recipes"


def without_waits(stderr: str) -> str:
    """What a program said on stderr but for what it was at, which it says after 5 seconds, as on a busy machine."""
    return re.sub(r"^(?!error)[^\n]+: \d+ s\n", "", stderr, flags=re.MULTILINE)
