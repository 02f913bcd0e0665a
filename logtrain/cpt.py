"""Continues the pretraining of a Llama on prepared text.

    logtrain cpt RECIPE.toml --model DIR --data DIR
    launch/run.sh cpt launch/recipes/cpt_8xh100.toml     on every GPU

The program exits with 0 when the model is trained and exported, and with 75 when it was stopped on request and has
saved everything (`--resume auto` goes on). core/entry.py has the other exit statuses.
"""

from dataclasses import dataclass

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.core.stop import StopSignal, stoppable
from logtrain.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class CptConfig(RunConfig):
    """Continue the pretraining of a Llama model on prepared text, all parameters, and export it."""

    trains_on = "documents"


def main(argv: list[str]) -> int:
    """Pretrain as the flags say; -> the exit status."""
    config = load(CptConfig, argv, writes="--rehearse" not in argv)

    def work(stop: StopSignal) -> int:
        if config.rehearse:
            from logtrain.readiness.rehearsal import rehearse

            return rehearse(config)
        from logtrain.readiness.foretold import foretell  # after the flags: --help and a mistyped one need no torch
        from logtrain.training.run import train

        return train(config, stop, foretell)

    return stoppable(work)


if __name__ == "__main__":
    run(main)
