"""Turns the settings of another trainer into a recipe.

    logtrain import FILE.json > recipe.toml

It reads the hyper-parameters of a hosted service (JSON), and recipes of LLaMA-Factory and of axolotl (YAML or JSON) for
continual pretraining and fine-tuning. Each key becomes a setting, or stands in the recipe's comments with the reason
why it has no effect here; one that would change the result and has no like here is an error, as an unknown one is.
"""

import shlex
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tomli_w

from logtrain.core.config import load, words_first
from logtrain.core.entry import run
from logtrain.core.kinds import NONE_BY_DEFAULT, Config
from logtrain.core.location import FILE
from logtrain.core.printable import printable
from logtrain.training.foreign_file import KEYS, read_given
from logtrain.training.foreign_recipe import Recipe, Stage, translate


@dataclass(frozen=True, kw_only=True)
class ImportConfig(Config):
    """Print a recipe (TOML) for logtrain cpt or sft from the settings of another trainer."""

    file: Annotated[str, FILE]
    """The settings: .json, .yaml or .yml. `logtrain import FILE` is the same as --file FILE."""
    stage: Stage = "auto"
    """What the run trains: cpt, on text, or sft, on chats. auto: as the file says."""
    gpus: int = 0
    """GPUs of the run, of each of which the file gives the batch. 0: not known, taken for one."""
    ignore: Annotated[tuple[str, ...], NONE_BY_DEFAULT] = ()
    """Keys to leave out, which would be errors."""

    def __post_init__(self):
        super().__post_init__()
        if self.gpus < 0:
            raise ValueError(f"gpus = {self.gpus} must be at least 1")


def main(argv: list[str]) -> int:
    """Print the recipe of the file that the flags name; -> the exit status."""
    config = load(ImportConfig, words_first(argv, "--file"))
    given = read_given(Path(config.file), config.ignore)
    recipe = translate(given, config.stage, config.gpus or 1)
    if not config.gpus:
        step = "loader.rows_per_step" if "loader.rows_per_step" in recipe.settings else "loader.documents_per_step"
        recipe.notes.insert(0, f"The number of GPUs is not known: {step} is that of one. --gpus N multiplies it.")
    print(text_of(recipe, f"{KEYS[given.trainer]['title']}, {given.file.name}"))
    for note in recipe.notes:
        print(printable(note, one_line=True), file=sys.stderr)
    return 0


def text_of(recipe: Recipe, origin: str) -> str:
    """The recipe as TOML, with comments on how its data are made and what it leaves out."""
    settings, stage = recipe.settings, recipe.stage
    model = settings.get("model", "MODEL")
    prepare = ["logtrain", "prepare", "--input", "FILES", "--tokenizer", model, "--output", settings["data"]]
    start = ["launch/run.sh", stage, "RECIPE.toml", *([] if "model" in settings else ["--model", "MODEL"])]
    lines = [f"From {origin}.", "", *(f"    {shlex.join(each)}" for each in ([*prepare, *recipe.prepare], start))]
    lines += ["", *recipe.notes] if recipe.notes else []
    if recipe.unused:
        keys_of = defaultdict(list)
        for key, why in recipe.unused.items():
            keys_of[why].append(key)
        lines += ["", "Without effect here:", *(f"    {', '.join(keys)}: {why}" for why, keys in keys_of.items())]
    comments = "".join(f"# {printable(line, one_line=True)}".rstrip() + "\n" for line in lines)
    return f"{comments}\n{tomli_w.dumps(nested(settings))}"


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by their dotted keys as tables, tables last."""
    tables: dict[str, Any] = {key: value for key, value in settings.items() if "." not in key}
    for key, value in settings.items():
        table, dot, name = key.partition(".")
        if dot:
            tables.setdefault(table, {})[name] = value
    return tables


if __name__ == "__main__":
    run(main)
