"""The tasks of a chat, which are prepared questions about a log; tasks.toml has their text."""

import tomllib
from pathlib import Path
from typing import NamedTuple


class Task(NamedTuple):
    """A prepared question about a log."""

    help: str
    """The subject of the question, in a few words."""
    prompt: str
    """The question; the lines of the log follow it."""


FILE = Path(__file__).with_name("tasks.toml")
TASKS = {
    name: Task(task["help"], task["prompt"].strip())
    for name, task in tomllib.loads(FILE.read_text(encoding="utf-8")).items()
}
LONGEST_PROMPT = max((task.prompt for task in TASKS.values()), key=len)
