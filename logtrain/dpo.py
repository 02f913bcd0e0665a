"""Trains a Llama to prefer the chosen answers of prepared pairs (DPO).

    logtrain dpo --model DIR --data DIR
    launch/run.sh dpo launch/recipes/dpo_lora_8xh100.toml     on every GPU

The data are pairs of answers, as logtrain.prepare --format dpo writes them. What the model itself finds of all answers
before the first step is the reference; it is computed once and kept beside the data. Everything else is a run as of
logtrain.sft, with the same exit statuses: checkpoints, resuming, export/ and, with adapters, adapter/.
"""

from dataclasses import dataclass, field

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.core.stop import StopSignal, stoppable
from logtrain.model.config import LoraConfig
from logtrain.training.config import PairsRunConfig
from logtrain.training.optim_config import LR_OF_PAIRS, OptimConfig


@dataclass(frozen=True, kw_only=True)
class DpoConfig(PairsRunConfig):
    """Train a Llama model to prefer the chosen answers of prepared pairs, by LoRA or all parameters, and export it."""

    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=16))
    """Adapters, here of rank 16 by default, without dropout: reference and model are compared as they answer."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=LR_OF_PAIRS))


def main(argv: list[str]) -> int:
    """Train as the flags say; -> the exit status."""
    config = load(DpoConfig, argv)
    if config.rehearse:  # it would leave the reference of two layers beside the data
        raise ValueError("rehearse: for cpt and sft alone; sft on the same chats rehearses all but the pairs' loss")

    def work(stop: StopSignal) -> int:
        from logtrain.training.run import train  # after the flags: --help and a mistyped one need no torch

        return train(config, stop)

    return stoppable(work)


if __name__ == "__main__":
    run(main)
