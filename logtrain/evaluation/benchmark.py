"""The table of a suite: every model's figures on every set, on seen and unseen groups apart, beside published ones.

benchmark.json    {title, models, sets: [{name, rows, parts: {PART: {FIGURE: {MODEL: mean}}}, published}]}, with a hash
                  over all of it; for people and their programs, no command reads it
benchmark.html    the same as a page
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import jinja2
import orjson

from logtrain.core.atomic import write_file
from logtrain.core.untrusted import sealed
from logtrain.evaluation.results import MetricMean, Result
from logtrain.evaluation.score_table import TITLES
from logtrain.evaluation.suite import PublishedFacts, SetFacts, Suite

TEMPLATE = Path(__file__).with_name("benchmark.html.jinja")
ALL = "all"

Figures = dict[str, dict[str, MetricMean]]
"""By the figure's name, then the model's."""


class SetTable(TypedDict):
    """The figures of one set."""

    name: str
    rows: int
    """Rows of the set that were asked."""
    parts: dict[str, Figures]
    """Of all rows, and of those of seen and unseen groups where the set has groups."""
    published: list[PublishedFacts]
    left_out: int
    """Rows that were not asked: bad ones, and ones too long."""


class Benchmark(TypedDict):
    """The whole of benchmark.json."""

    title: str
    models: dict[str, str]
    """Folder of each model, by its name."""
    sets: list[SetTable]


def set_table(facts: SetFacts, result: Result, published: Sequence[PublishedFacts]) -> SetTable:
    """The table of one set. `published`: of all sets."""
    models = result["models"]
    parts = {ALL: {name: model["metrics"] for name, model in models.items()}}
    for group in next(iter(models.values()))["groups"]:
        parts[group] = {name: model["groups"][group] for name, model in models.items()}
    data = result["data"]
    return {
        "name": facts["name"],
        "rows": data["rows"],
        "parts": {part: figures_of(facts["figures"], of_models) for part, of_models in parts.items()},
        "published": [row for row in published if row["set"] == facts["name"]],
        "left_out": len(data["too_long"]) + sum(data["left_out"].values()),
    }


def figures_of(names: Sequence[str], of_models: Mapping[str, Mapping[str, MetricMean]]) -> Figures:
    """The figures of these names that any model has."""
    found = {name: {model: means[name] for model, means in of_models.items() if name in means} for name in names}
    return {name: means for name, means in found.items() if means}


def make_benchmark(suite: Suite, models: Mapping[str, str], results: Mapping[str, Result]) -> Benchmark:
    """The table of a suite. `results`: by the set's name."""
    published = suite.get("published", [])
    sets = [set_table(facts, results[facts["name"]], published) for facts in suite["set"]]
    return {"title": suite["title"], "models": dict(models), "sets": sets}


def write_benchmark(folder: Path, benchmark: Benchmark) -> None:
    """Write benchmark.json and benchmark.html, each whole or not at all. Raises OSError."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        benchmark=benchmark, titles=TITLES, shown=shown, models=list(benchmark["models"])
    )
    write_file(folder / "benchmark.json", sealed(orjson.loads(orjson.dumps(benchmark))))  # what is not finite is null
    write_file(folder / "benchmark.html", page.encode())


def shown(mean: MetricMean | None) -> tuple[str, str, str]:
    """(a figure, its interval, the majority's figure), "" for none."""
    if mean is None:
        return "", "", ""
    majority = f"majority {mean['majority']:.3f}" if "majority" in mean else ""
    low, high = mean["low"], mean["high"]
    interval = "no interval" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    return f"{mean['mean']:.3f}", interval, majority


def lines(benchmark: Benchmark) -> list[str]:
    """A line of key=value for each figure, for people and programs."""
    found = []
    for one in benchmark["sets"]:
        for part, figures in one["parts"].items():
            for name, means in figures.items():
                for model, mean in means.items():
                    told = " ".join(
                        f"{key}={value:.6g}" for key, value in mean.items() if isinstance(value, float | int)
                    )
                    found.append(f"benchmark set={one['name']} rows={part} model={model} figure={name} {told}")
        for row in one["published"]:
            found.append(
                f"published set={one['name']} figure={row['figure']} value={row['value']:g} system={row['system']!r}"
            )
    return found
