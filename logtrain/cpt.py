"""Continual pretraining: `torchrun --nproc_per_node 8 -m logtrain.cpt launch/recipes/cpt_8xh100.toml`, or
without torchrun on one device.

Exits with 0 when trained and exported, 75 when stopped on request with everything saved (`--resume auto` goes on), 2
on a wrong input.
"""

from dataclasses import dataclass

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class CptConfig(RunConfig):
    """Continue the pretraining of a Llama model on prepared text, all parameters, and export it."""


def main(argv: list[str]) -> int:
    config = load(CptConfig, argv)
    from logtrain.training.run import train  # after the flags: --help and a mistyped one need no torch

    return train(config)


if __name__ == "__main__":
    run(main)
