"""A log that does not fit, folded until it does: visibly, and so that every line can be had again.

    folded = fold(lines, 6000, count_tokens)
    folded.text                       # what a model is given instead of the lines
    folded.gaps                       # which lines are left out
    fold(lines, 6000, count_tokens, show=[(100, 120)])     # the same with these lines whole

The text has the templates of the lines with how often each occurs and where first and last; then single lines whole,
each with its number, in their order, and where lines are left out their numbers:

    T1 39,812 lines L1-L99998: <*> INFO dfs.DataNode: Received block blk_<*> of size <*>
    ...
    L1 081109 203518 INFO dfs.DataNode: Received block blk_-160 of size 91178
    [L2-L354]
    L355 081109 203521 ERROR dfs.DataNode: disk /dev/sdb failed

Rare errors are whole first of all, then the first and the last line of the log; then come the templates, other rare
lines, the neighbours of rare errors, the first and the last line of each template, and lines from everywhere in the log
(notable.py), as far as there is room. 100,000 real lines take 0.6 to 1.3 s of one core.
"""

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from logtrain.conversation.notable import RARE, Notable, notable
from logtrain.text.log_templates import Template
from logtrain.text.severity import ERROR, FATAL, PLAIN, WARNING

CountTokens = Callable[[str], int]
SAMPLE = 512  # lines, by which the tokens of all are estimated
LEAST_CHARS_OF_FIT = 16  # characters a token; a text with more cannot fit, so nobody need count its tokens
LONGEST_TEMPLATE = 240  # characters that are shown of one
NEIGHBOURS = 2  # lines before and after a rare error
MARK_CHARS = 16  # about what a line's number and the mark of a gap take
# Shares of the room that a kind of text may take before the next kind has its turn.
RARE_ERRORS, TEMPLATES, RARE_LINES, AROUND = 0.6, 0.4, 0.15, 0.1
LONGEST_LINE = 0.25  # of the room; what is longer is cut, and says so


@dataclass(frozen=True)
class Group:
    """The lines of one template."""

    name: str
    """T1 is the most frequent one's."""
    template: Template
    first: int
    """number of its first line"""
    last: int
    """number of its last line"""

    @property
    def text(self) -> str:
        """The group as the folded log has it."""
        pattern = self.template.text
        if len(pattern) > LONGEST_TEMPLATE:
            pattern = f"{pattern[:LONGEST_TEMPLATE]}..."
        return f"{self.name} {self.template.count:,} lines L{self.first}-L{self.last}: {pattern}"


@dataclass(frozen=True)
class Folded:
    """A log, folded. With nothing left out its text is the lines as they are."""

    lines: Sequence[str]
    """all lines"""
    first: int
    """number of the first line"""
    shown: list[int]
    """indices of the lines that are whole, ascending"""
    groups: list[Group]
    """every template, the most frequent first"""
    group_L: np.ndarray
    """int32: the index in `groups` of each line's"""
    seen: Notable
    """what is known of the lines, by which they can be folded again in no time"""
    text: str
    """what the model is given"""
    num_tokens: int
    """tokens of the text"""
    tokens_before: int
    """tokens of all lines, estimated where they are many"""

    @property
    def is_folded(self) -> bool:
        """Whether a line is left out."""
        return len(self.shown) < len(self.lines)

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """Numbers of the first and the last line of each run of lines that are left out."""
        return [(start + self.first, stop + self.first - 1) for start, stop in _gaps(self.shown, len(self.lines))]

    def unfold(self, first: int, last: int) -> list[str]:
        """The lines with these numbers, exactly. Raises ValueError where there are none."""
        end = self.first + len(self.lines) - 1
        if not self.first <= first <= last <= end:
            raise ValueError(f"lines {first}-{last}: the log has lines {self.first}-{end}")
        return list(self.lines[first - self.first : last - self.first + 1])

    def numbers_of(self, name: str) -> list[int]:
        """The numbers of the lines of a group, T1 or t1. Raises ValueError where there is none of this name."""
        names = [group.name for group in self.groups]
        if name.upper() not in names:
            raise ValueError(f"{name}: no template of this log; it has {names[0]} to {names[-1]}")
        return (np.flatnonzero(self.group_L == names.index(name.upper())) + self.first).tolist()

    def unfolded(self) -> list[str]:
        """All lines, from those that are shown and those that are not."""
        parts = [(self.first + at, [self.lines[at]]) for at in self.shown]
        parts += [(first, self.unfold(first, last)) for first, last in self.gaps]
        return list(itertools.chain.from_iterable(some for _, some in sorted(parts, key=lambda part: part[0])))

    def __str__(self) -> str:
        if not self.is_folded:
            return f"{len(self.lines):,} lines, {self.num_tokens:,} tokens"
        what = f"{len(self.lines):,} lines, folded: {len(self.groups):,} templates, {len(self.shown):,} lines whole"
        return f"{what}; {self.num_tokens:,} tokens instead of {self.tokens_before:,}"


def fold(
    lines: Sequence[str],
    max_tokens: int,
    count_tokens: CountTokens,
    *,
    first: int = 1,
    show: Sequence[tuple[int, int]] = (),
    seen: Notable | None = None,
) -> Folded:
    """Fold the lines of a log, the first of which has the number `first`, to `max_tokens` at most. `show`: numbers of
    the first and the last of lines that are to be whole. `seen`: that of the same lines, if they have been folded
    before. Raises ValueError where there is not room enough.
    """
    length = sum(map(len, lines)) + len(lines)
    seen = seen or notable(lines)
    groups, group_L = _groups(seen, first)
    chars_per_token = _chars_per_token(lines, count_tokens)
    if length <= max_tokens * LEAST_CHARS_OF_FIT and (size := count_tokens("\n".join(lines))) <= max_tokens:
        return Folded(lines, first, list(range(len(lines))), groups, group_L, seen, "\n".join(lines), size, size)
    fold = _Fold(lines, first, groups, int(max_tokens * chars_per_token))
    wanted = fold.forced(show)
    pieces = wanted + fold.pieces(seen)
    text, num_pieces, size = _most_that_fits(fold, pieces, max_tokens, count_tokens)
    if num_pieces < max(len(wanted), 1):
        what = "the lines to show take" if wanted else "a folded log takes"
        raise ValueError(f"{what} more than the {max_tokens:,} tokens that there is room for")
    shown = sorted({piece for piece in pieces[:num_pieces] if isinstance(piece, int)})
    return Folded(lines, first, shown, groups, group_L, seen, text, size, int(length / chars_per_token))


def _most_that_fits(
    fold: "_Fold", pieces: list["int | Group"], max_tokens: int, count_tokens: CountTokens
) -> tuple[str, int, int]:
    """The text of as many of the pieces as there is room for, their number and the text's tokens; 0 pieces if not even
    the first fits.
    """
    counted: dict[int, tuple[str, int]] = {}

    def size(num_pieces: int) -> int:
        text = fold.render(pieces[:num_pieces])
        counted[num_pieces] = (text, count_tokens(text))
        return counted[num_pieces][1]

    most = bisect.bisect_right(range(len(pieces) + 1), max_tokens, lo=1, key=size) - 1
    while most and (most not in counted or counted[most][1] > max_tokens):
        if most not in counted and size(most) <= max_tokens:
            break
        most -= 1
    return (counted[most][0], most, counted[most][1]) if most else ("", 0, 0)


class _Fold:
    """Chooses and writes the pieces of a folded log: lines by their index, and groups."""

    def __init__(self, lines: Sequence[str], first: int, groups: list[Group], room: int):
        """`room`: about how many characters there is room for."""
        self.lines, self.first, self.groups, self.room = lines, first, groups, room

    def forced(self, show: Sequence[tuple[int, int]]) -> list["int | Group"]:
        """The indices of lines that a user wants whole. Raises ValueError where the log has none of these."""
        last = self.first + len(self.lines) - 1
        for start, stop in show:
            if not self.first <= start <= stop <= last:
                raise ValueError(f"lines {start}-{stop}: the log has lines {self.first}-{last}")
        ranges = (range(start - self.first, stop - self.first + 1) for start, stop in show)
        return list(dict.fromkeys(itertools.chain.from_iterable(ranges)))

    def pieces(self, seen: Notable) -> list["int | Group"]:
        """The pieces from the most important one on, a few more than there is room for."""
        end = len(self.lines) - 1
        errors = seen.rare(ERROR, FATAL).tolist()
        common = [group for group in self.groups if group.template.count > RARE]
        failing = [group for group in common if group.template.severity >= ERROR]
        common = list(dict.fromkeys(itertools.chain(*zip(common, failing, strict=False), common)))
        around = (min(max(at + by, 0), end) for at in errors for by in (1, -1, *range(2, NEIGHBOURS + 1)))
        firsts = [group.first - self.first for group in common]
        lasts = [group.last - self.first for group in common]
        rest = seen.spread().tolist()
        kinds: list[tuple[Iterator[int | Group], float]] = [
            (iter(errors), RARE_ERRORS),
            (iter([0, end]), 1.0),
            (iter(common), TEMPLATES),
            (iter(seen.rare(WARNING, WARNING).tolist()), RARE_LINES),
            (iter(seen.rare(PLAIN, PLAIN).tolist()), RARE_LINES),
            (around, AROUND),
            (iter(firsts + lasts), 1.0),
            (iter(errors + common + rest), 1.0),
        ]
        chosen: dict[int | Group, None] = {}
        used = 0
        for kind, share in kinds:
            most = min(used + share * self.room, 1.5 * self.room)
            for piece in kind:
                if used > most:
                    break
                if piece not in chosen:
                    chosen[piece] = None
                    used += len(self._line(piece) if isinstance(piece, int) else piece.text) + MARK_CHARS
        return list(chosen)

    def render(self, pieces: Sequence["int | Group"]) -> str:
        """The folded log with these pieces."""
        groups = sorted((piece for piece in pieces if isinstance(piece, Group)), key=lambda group: int(group.name[1:]))
        shown = sorted({piece for piece in pieces if isinstance(piece, int)})
        last = self.first + len(self.lines) - 1
        parts = [
            f"[{len(self.lines):,} log lines, folded. T1, T2, ... are templates of lines that differ only in <*>. Then "
            f"single lines whole with their numbers, L{self.first} to L{last}; [L2-L9] marks lines that are left out.]"
        ]
        parts += [group.text for group in groups]
        if more := len(self.groups) - len(groups):
            count = sum(group.template.count for group in self.groups) - sum(group.template.count for group in groups)
            parts.append(f"[{more:,} more templates, {count:,} lines]")
        gaps = dict(_gaps(shown, len(self.lines)))
        for index in sorted({*shown, *gaps}):
            if index in gaps:
                start, stop = index + self.first, gaps[index] + self.first - 1
                parts.append(f"[L{start}-L{stop}]" if stop > start else f"[L{start}]")
            else:
                parts.append(self._line(index))
        return "\n".join(parts)

    def _line(self, index: int) -> str:
        """A line with its number; what is very long is cut."""
        line, most = self.lines[index], max(80, int(LONGEST_LINE * self.room))
        if len(line) > most:
            line = f"{line[:most]} [and {len(line) - most:,} more characters]"
        return f"L{index + self.first} {line}"


def _groups(seen: Notable, first: int) -> tuple[list[Group], np.ndarray]:
    """The templates, the most frequent first, and the index of each line's group: int32 [L]."""
    numbers, first_T = np.unique(seen.template_L, return_index=True)
    last_T = len(seen.template_L) - 1 - np.unique(seen.template_L[::-1], return_index=True)[1]
    by_count = sorted(range(len(numbers)), key=lambda at: -seen.templates[numbers[at]].count)
    groups = [
        Group(f"T{rank}", seen.templates[numbers[at]], int(first_T[at]) + first, int(last_T[at]) + first)
        for rank, at in enumerate(by_count, 1)
    ]
    rank_T = np.empty(len(numbers), np.int32)
    rank_T[by_count] = np.arange(len(numbers), dtype=np.int32)
    return groups, rank_T[seen.template_L]


def _gaps(shown: Sequence[int], num_lines: int) -> list[tuple[int, int]]:
    """(start, stop) of each run of indices that are not in `shown`, which is ascending."""
    ends = zip([0, *(at + 1 for at in shown)], [*shown, num_lines], strict=True)
    return [(start, stop) for start, stop in ends if start < stop]


def _chars_per_token(lines: Sequence[str], count_tokens: CountTokens) -> float:
    """Characters a token, by lines that are spread over the log."""
    sample = "\n".join(line[:2000] for line in lines[:: max(1, len(lines) // SAMPLE)])
    return max(len(sample), 1) / max(count_tokens(sample), 1)
