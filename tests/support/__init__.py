"""Helpers of the tests, and where the checkout lies."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
RECIPES = LAUNCH / "recipes"
