"""Writes a checkpoint of a run as a Hugging Face folder.

logtrain export --run runs/NAME --output DIR
launch/run.sh export --run runs/NAME --output DIR     where one device is too small
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.core.kinds import Config
from logtrain.core.location import FILE, FOLDER, OUTPUT, told
from logtrain.core.run_folder import read_run_config
from logtrain.core.still import Still
from logtrain.training.config import ParallelConfig, RunConfig


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """Write any checkpoint of a run as a model that transformers and vLLM load."""

    run: Annotated[str, FOLDER]
    """Folder of the run, with its config.toml and checkpoints/."""
    output: Annotated[str, OUTPUT]
    """Folder to write, which must not exist."""
    step: int = 0
    """Step of the checkpoint. 0: the newest complete one."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the weights. auto: as the run's config says."""
    scores: Annotated[str, FILE] = ""
    """NAME=FILE: the model's name in the scores.json of an evaluation, whose results go into the model card."""


def main(argv: list[str]) -> int:
    """Export as the flags say; -> the exit status."""
    config = load(ExportConfig, argv)
    # After the flags: --help and a mistyped one need no torch.
    from logtrain.model.card import read_scores
    from logtrain.training.checkpoint import Checkpoints
    from logtrain.training.publish import check_output, publish_model
    from logtrain.training.setup import set_up

    folder, output = Path(config.run), Path(config.output)
    if output.exists():
        raise ValueError(f"{output}: exists already; choose another --output")
    check_output(output.absolute())
    scores = read_scores(config.scores)
    trained = read_run_config(folder, RunConfig)
    export_dtype = trained.export_dtype if config.dtype == "auto" else config.dtype
    with Still():
        of_run = set_up(
            replace(trained, parallel=ParallelConfig(), export_dtype=export_dtype)
        )  # any number of ranks will do
        checkpoints = Checkpoints(folder / "checkpoints", note=of_run.world.note)
        path = checkpoints.at(config.step)
        frozen = of_run.initial_weights() if trained.lora.rank else None  # no checkpoint has them
        model = of_run.build_model(frozen)
        checkpoints.load(path, model)
        result = publish_model(output, model, of_run, scores)
    if of_run.world.is_main:
        print(told(f"{path} -> {output} {result}"))
    of_run.world.close()
    return 0


if __name__ == "__main__":
    run(main)
