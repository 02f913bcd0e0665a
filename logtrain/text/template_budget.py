"""What the rendering of a chat template may do: as much as any honest one, and some more for a long conversation.

A unit is about a nanosecond: a character that is looked at or copied costs one, a step (an item of a loop, a part of a
list) a hundred, a call a thousand. An honest template spends some 10,000 and 20 for each character of the conversation.
"""

from collections.abc import Iterator
from typing import Any

import jinja2

UNITS, UNITS_PER_CHARACTER = 20_000_000, 300
STEP, CALL = 100, 1000
MAX_DEPTH = 100  # lists within each other


class Budget:
    """What one rendering may still spend, in units; there is one rendering at a time. left: the units."""

    __slots__ = ("left",)

    def __init__(self, num_characters: int):
        self.start(num_characters)

    def start(self, num_characters: int) -> None:
        """Begins another rendering, of a conversation of so many characters."""
        self.left = UNITS + UNITS_PER_CHARACTER * num_characters

    def spend(self, units: float) -> None:
        """Takes units away. Raises jinja2.TemplateError where the template has no more."""
        self.left -= units
        if self.left < 0:
            raise jinja2.TemplateError("it does more than any chat template needs: endless loops, or texts that grow")

    def weighed(self, value: Any) -> Any:
        """Returns `value`, after all that is in it has been paid for."""
        if type(value) is str and self.left > len(value):  # nearly all are
            self.left -= len(value) + STEP
        elif value is not True and value is not False:
            self.weigh(value)
        return value

    def weigh(self, value: Any, depth: int = 0) -> int:
        """Pays for all that is in a value; returns how many units that was. What holds a list many times is paid for as
        often, for it would be as long if it were written out.
        """
        if isinstance(value, str | bytes):
            units = STEP + len(value)
        elif isinstance(value, range):
            units = STEP * (1 + len(value))
        else:
            units = STEP
        self.spend(units)
        if isinstance(value, list | tuple | dict):
            if depth > MAX_DEPTH:
                raise jinja2.TemplateError("lists within each other too deep")
            for part in value:
                units += self.weigh(part, depth + 1)
            if isinstance(value, dict):
                for part in value.values():
                    units += self.weigh(part, depth + 1)
        return units

    def counted(self, values: Any) -> Any:
        """Returns what a loop goes over, after its items have been paid for; items that come one by one are paid for
        then.
        """
        if hasattr(values, "__len__"):
            self.spend(STEP * len(values))
        return self.one_by_one(values)

    def copied(self, values: Any) -> Any:
        """Returns what a slice or a sum is taken of, after a copy has been paid for."""
        if type(values) is str and self.left > len(values):
            self.left -= len(values) + STEP
        elif isinstance(values, str | bytes):
            self.spend(STEP + len(values))
        elif isinstance(values, list | tuple):
            self.spend(STEP + STEP * len(values))
        return values

    def searched(self, values: Any) -> Any:
        """Returns what something is looked for in, after a look at all of it has been paid for; objects are indexed."""
        return values if type(values) is dict else self.weighed(values)

    def one_by_one(self, values: Any) -> Any:
        """Returns `values`; if they come one by one, each is paid for as it comes."""
        return map(self.weighed, values) if isinstance(values, Iterator) else values
