"""The tasks of a chat: questions about a log that are written already. tasks.toml has their text."""

import tomllib
from pathlib import Path
from typing import NamedTuple


class Task(NamedTuple):
    """A question about a log."""

    help: str
    """what it asks for, in a few words"""
    prompt: str
    """the question; the log's lines follow on the next line"""


FILE = Path(__file__).with_name("tasks.toml")
TASKS = {
    name: Task(task["help"], task["prompt"].strip())
    for name, task in tomllib.loads(FILE.read_text(encoding="utf-8")).items()
}
LONGEST_PROMPT = max((task.prompt for task in TASKS.values()), key=len)
