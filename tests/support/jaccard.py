"""The Jaccard index of texts, counted exactly: what MinHash estimates."""

import re

Sets = frozenset[tuple[str, ...]]


def sets_of(text: str) -> Sets:
    """The sets of three words in a row; each word begins one, and so does the end."""
    words = [*re.findall(r"[^\W_]+|#", text), "\x01"]
    return frozenset(tuple([*words, "", ""][i : i + 3]) for i in range(len(words)))


def jaccard(first: Sets, second: Sets) -> float:
    """The share of their union that is in both."""
    return len(first & second) / len(first | second)


def share_with_near_twins(held: list[str], others: list[str], least: float = 0.8) -> float:
    """Of texts, how many have one among `others` with a Jaccard index of at least so much."""
    sets = {sets_of(text) for text in others}
    near = [any(jaccard(mine, other) >= least for other in sets) for mine in map(sets_of, held)]
    return sum(near) / len(near)
