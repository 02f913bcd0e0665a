"""Figures beside what was predicted of them before there was a GPU to measure, each with the band it should lie in."""

import json
from pathlib import Path

from benchmarks.gpu_check.figures import Figure, Prediction

RESULTS = Path(__file__).resolve().parents[1] / "results"
INSIDE, OUTSIDE = "held", "OUTSIDE"
TOTAL, MEMORY = 0.08, 0.03  # bands of a step's time and of its memory


def read_predictions(gpu: str) -> dict[str, Prediction]:
    """The predictions on record for a GPU, by figure; {} where there are none."""
    path = RESULTS / f"{gpu}_predicted.json"
    return json.loads(path.read_text())["figures"] if path.is_file() else {}


def verdict(figure: Figure, prediction: Prediction | None, on_gpu: bool) -> str:
    """Whether a figure lies in its band, in a word or a few."""
    if prediction is None:
        return ""
    if not on_gpu:
        return "not judged on a CPU"
    kept = abs(figure["value"] - prediction["value"]) <= prediction["band"] * abs(prediction["value"])
    return f"{INSIDE if kept else OUTSIDE} ({prediction['band']:.0%})"


def table(figures: list[Figure], predictions: dict[str, Prediction], on_gpu: bool) -> list[str]:
    """A heading, a line for each figure in the order they came, and one for each prediction that has no figure."""
    lines = [f"{'':64} {'predicted':>12} {'measured':>12} {'ratio':>6}  verdict"]
    told = {figure["figure"] for figure in figures}
    for figure in figures:
        prediction = predictions.get(figure["figure"])
        ratio = ""
        if prediction and on_gpu and prediction["value"]:
            ratio = f"{figure['value'] / prediction['value']:.3f}"
        name = f"{figure['figure']}{', ' + figure['unit'] if figure['unit'] else ''}"
        predicted = number(prediction["value"]) if prediction else ""
        judged = verdict(figure, prediction, on_gpu)
        lines.append(f"{name:64} {predicted:>12} {number(figure['value']):>12} {ratio:>6}  {judged}".rstrip())
    for name, prediction in predictions.items():
        if name not in told and on_gpu:
            lines.append(f"{name + ', ' + prediction['unit']:64} {number(prediction['value']):>12} {'-':>12}")
    return lines


def number(value: float) -> str:
    """A value in at most 12 characters."""
    if value == 0 or 0.01 <= abs(value) < 1e7:
        return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.4g}"
