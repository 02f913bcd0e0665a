"""Continual pretraining: `torchrun --nproc_per_node 8 -m logtrain.cpt launch/recipes/cpt_8xh100.toml`, or
without torchrun on one device.

Exits with 0 when trained and exported, 75 when stopped on request with everything saved (`--resume auto` goes on), 2
on a wrong input.
"""

from dataclasses import dataclass

from logtrain.core.config import load, run
from logtrain.training.job import Job, JobConfig


@dataclass(frozen=True, kw_only=True)
class CptConfig(JobConfig):
    """Continue the pretraining of a Llama model on prepared text, all parameters, and export it."""


def main(argv: list[str]) -> int:
    return Job(load(CptConfig, argv)).run()


if __name__ == "__main__":
    run(main)
