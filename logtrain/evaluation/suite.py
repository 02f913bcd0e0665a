"""A suite: sets of questions, the figures that count of each, and what others have published, in a TOML file.

title = "..."
[[set]]          name, file, format, and any other settings of logtrain evaluate for it; figures = [names of scores]
[[published]]    set, system, figure, value, source
"""

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from logtrain.core.untrusted import checked, read_bytes
from logtrain.evaluation.config import BenchmarkConfig, EvaluateConfig, ModelsConfig
from logtrain.evaluation.score_table import TITLES

MAX_BYTES = 1 << 20
OF_MODELS = {field.name for field in fields(ModelsConfig)} - {"max_new_tokens", "stop"}  # said once, for all sets


class SetFacts(TypedDict):
    """A set of questions."""

    name: str
    file: str
    format: str
    figures: list[str]
    """the scores that count, in their order"""
    task: NotRequired[str]
    kind_column: NotRequired[str]
    task_column: NotRequired[str]
    split_by: NotRequired[str]
    answers: NotRequired[str]
    labels: NotRequired[list[str]]
    columns: NotRequired[list[str]]
    ignore_columns: NotRequired[list[str]]
    stop: NotRequired[list[str]]
    max_new_tokens: NotRequired[int]


class PublishedFacts(TypedDict):
    """A figure that others have published."""

    set: str
    system: str
    figure: str
    value: float
    source: str


class Suite(TypedDict):
    """What a suite file holds."""

    title: str
    set: list[SetFacts]
    published: NotRequired[list[PublishedFacts]]


def read_suite(path: Path) -> Suite:
    """The suite in a file. Raises ValueError for one that is none, names a set twice, or a figure or set that is not
    there.
    """
    try:
        facts = tomllib.loads(read_bytes(path, MAX_BYTES).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: not TOML ({error})") from None
    suite: Suite = checked(f"{path}: suite", facts, Suite)
    names = [one["name"] for one in suite["set"]]
    if not names or len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
        raise ValueError(f"{path}: names of sets {names}: give one at least, each once, of letters, digits and _")
    for one in [*suite["set"], *suite.get("published", [])]:
        figures = one["figures"] if "figures" in one else [one["figure"]]
        if unknown := [figure for figure in figures if figure not in TITLES]:
            raise ValueError(f"{path}: figure {unknown[0]!r} is none of {', '.join(TITLES)}")
    for row in suite.get("published", []):
        if row["set"] not in names:
            raise ValueError(
                f"{path}: published of {row['system']!r}: set {row['set']!r} is none of {', '.join(names)}"
            )
        if not row["source"]:
            raise ValueError(f"{path}: published of {row['system']!r}: a figure needs its source")
    return suite


def config_of(config: BenchmarkConfig, facts: SetFacts) -> EvaluateConfig:
    """The evaluation of one set. Raises ValueError for settings that do not fit together."""
    settings: dict[str, Any] = {name: getattr(config, name) for name in OF_MODELS}
    if not facts.get("split_by"):
        settings |= {"prepared": "", "unseen": ()}
    settings |= {"max_new_tokens": config.max_new_tokens, "stop": config.stop}
    own = {name: value for name, value in facts.items() if name not in ("name", "file", "figures")}
    settings |= {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    settings["data"] = str(Path(config.data) / facts["file"])
    settings["run"] = str(Path(config.run) / facts["name"])
    try:
        return EvaluateConfig(**settings)
    except ValueError as error:
        raise ValueError(f"{config.suite}: set {facts['name']}: {error}") from None
