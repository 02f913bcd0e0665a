"""How a part of the check tells what it has measured: a line of JSON on standard output for every figure, as soon as
it is there, so that a part which is cut off has told all that it had.
"""

import json
from collections.abc import Iterable
from typing import TypedDict

MARK = '{"figure": '


class Figure(TypedDict):
    """What was measured."""

    figure: str
    """its name, which a prediction of it has too"""
    value: float
    unit: str


def tell(name: str, value: float, unit: str) -> None:
    """Print a figure."""
    print(json.dumps(Figure(figure=name, value=value, unit=unit)), flush=True)


def figures_in(lines: Iterable[str]) -> list[Figure]:
    """The figures among the lines that a part has printed."""
    return [json.loads(line) for line in lines if line.startswith(MARK)]
