"""Checks of what a caller from Python gives: each mistake is a ValueError of one line, with what was expected."""

from collections.abc import Sequence
from pathlib import Path

import torch

from logtrain.core.kinds import shown
from logtrain.text.chat_template import Turn

Prompt = str | Sequence[Turn]


def path_of(name: str, path: str | Path) -> Path:
    """The path that a caller gave. Raises ValueError, with the argument's name, for what is no path."""
    if not (isinstance(path, str | Path) and str(path)):
        raise ValueError(f"{name} = {shown(path)}: expected the path of a folder")
    return Path(path)


def device_of(name: str | torch.device) -> torch.device:
    """The device of that name. Raises ValueError for one that is not here, or on which no model of ours runs."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name)
        known = device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < count)
    except (RuntimeError, TypeError):
        known = False
    if not known:
        raise ValueError(f"device = {shown(name)}: expected auto, cpu, cuda or cuda:N; this machine has {count} GPUs")
    return device


def list_of_texts(name: str, texts: Sequence[str]) -> Sequence[str]:
    """The texts that a caller gave. Raises ValueError, with the argument's name, for anything but a list of strings: a
    single string would be taken for a list of its characters.
    """
    if isinstance(texts, str) or not (isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts)):
        raise ValueError(f"{name} = {shown(texts)}: expected a list of strings")
    return texts


def check_prompt(prompt: Prompt) -> None:
    """Raises ValueError unless a prompt is a string or a list of turns with strings."""
    if isinstance(prompt, str):
        return
    if isinstance(prompt, Turn) or not isinstance(prompt, Sequence):
        raise ValueError(f"a prompt is {shown(prompt)}: expected a string or a list of logtrain.Turn")
    for number, turn in enumerate(prompt):
        if not (isinstance(turn, Turn) and all(isinstance(text, str) for text in turn)):
            raise ValueError(f"turn {number} is {shown(turn)}: expected logtrain.Turn(role, content), both strings")
