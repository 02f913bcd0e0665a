"""What turns say and what a template writes, told apart in the text that the template makes of both.

A turn that spells a mark (`</s>` in a log line) must not be taken for the template's own. So a separator, a character
that nobody uses, is put on both sides of each such spelling before the template renders the turn. A template that does
more with what is said than write it may not bear that: DeepSeek-R1's drops all up to `</think>` of earlier answers, and
then line ends. There the mark has been used up, and is left without separators. Which it is decides the result: without
its separators it must be what the template makes of the turns as they are.
"""

import re
from collections.abc import Callable, Mapping, Sequence

SEPARATORS = range(0xF0000, 0xFFFFE)  # private use: they mean nothing to anyone


class Spoken:
    """Finds spellings of marks in what is said."""

    def __init__(self, marks: Mapping[str, int]):
        """`marks`: of a tokenizer, by their texts."""
        longest_first = sorted(marks, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def apart(self, contents: Sequence[str], render: Callable[[Sequence[str]], str]) -> tuple[Sequence[str], str]:
        """Returns contents of turns in which every mark stands between separators, and the separator, "" if there is
        none. `render` gives the text of such contents; it may raise ValueError.
        """
        spelling = [i for i, content in enumerate(contents) if self.pattern.search(content)]
        if not spelling:
            return contents, ""
        separator = next(one for one in map(chr, SEPARATORS) if not any(one in content for content in contents))
        plain = render(contents)

        def is_right(trial: Sequence[str]) -> bool:
            try:
                return render(trial).replace(separator, "") == plain
            except ValueError:  # of a template that asks for a mark
                return False

        trial = [self.pattern.sub(f"{separator}\\g<0>{separator}", content) for content in contents]
        if is_right(trial):
            return trial, separator
        found = list(contents)
        for i in spelling:
            for text in set(self.pattern.findall(contents[i])):
                trial = [*found[:i], self.between(found[i], text, separator), *found[i + 1 :]]
                found = trial if is_right(trial) else found
        return found, separator

    def between(self, content: str, mark: str, separator: str) -> str:
        """Returns a content in which one of the marks stands between separators."""
        return self.pattern.sub(lambda one: f"{separator}{mark}{separator}" if one[0] == mark else one[0], content)
