"""How a part of the check tells what it has measured: a line of JSON on standard output for every figure, as soon as
it is there, so that a part which is cut off has told all that it had.
"""

import json
from collections.abc import Iterable
from typing import TypedDict

MARKS = {"figure": '{"figure": ', "prediction": '{"prediction": '}


class Figure(TypedDict):
    """What was measured."""

    figure: str
    """its name, which a prediction of it has too"""
    value: float
    unit: str


def tell(name: str, value: float, unit: str) -> None:
    """Print a figure."""
    print(json.dumps(Figure(figure=name, value=value, unit=unit)), flush=True)


class Prediction(TypedDict):
    """What was predicted of a figure."""

    value: float
    unit: str
    band: float
    """how far off a measured value may be, as a share of the predicted one"""


def foretell(name: str, value: float, unit: str, band: float) -> None:
    """Print a prediction that could only be made where the figure was measured."""
    print(json.dumps({"prediction": name, **Prediction(value=value, unit=unit, band=band)}), flush=True)


def figures_in(lines: Iterable[str]) -> list[Figure]:
    """The figures among the lines that a part has printed."""
    return [json.loads(line) for line in lines if line.startswith(MARKS["figure"])]


def predictions_in(lines: Iterable[str]) -> dict[str, Prediction]:
    """The predictions among the lines that a part has printed, by figure."""
    found = [json.loads(line) for line in lines if line.startswith(MARKS["prediction"])]
    return {each.pop("prediction"): each for each in found}
