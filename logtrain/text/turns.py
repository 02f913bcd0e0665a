"""The turns of a conversation, and the orders that they may be in."""

from collections.abc import Sequence
from typing import Literal, NamedTuple


class Turn(NamedTuple):
    """One turn of a conversation: who speaks, and what is said."""

    role: Literal["system", "user", "assistant"]
    content: str


def check_turns(turns: Sequence[Turn]) -> None:
    """Raise ValueError unless the turns are one of the system or none, then user and assistant in alternation, with an
    assistant's as the last.
    """
    if turns and not any(turn.role == "assistant" for turn in turns):
        raise ValueError("no assistant turn, so nothing to train on")
    check_order(turns)
    if turns[-1].role != "assistant":
        raise ValueError(f"{turn_name(turns, len(turns) - 1)} is the last and has no answer")


def check_question(turns: Sequence[Turn]) -> None:
    """Raise ValueError unless the turns are one of the system or none, then user and assistant in alternation, with a
    user's as the last.
    """
    check_order(turns)
    if turns[-1].role != "user":
        raise ValueError(f"{turn_name(turns, len(turns) - 1)} is the last; a question ends with a turn of the user")


def check_order(turns: Sequence[Turn]) -> None:
    """Raise ValueError unless the turns are one of the system or none, then user and assistant in alternation."""
    if not turns:
        raise ValueError("no turns")
    first = turns[0].role == "system"
    for i in range(first, len(turns)):
        if turns[i].role != ("user", "assistant")[(i - first) % 2]:
            raise ValueError(f"{turn_name(turns, i)} comes {f'after {turns[i - 1].role}' if i else 'first'}")


def turn_name(turns: Sequence[Turn], i: int) -> str:
    """Returns what an error calls a turn."""
    return f"turn {i} ({turns[i].role})" if i >= 0 else "no turns"
