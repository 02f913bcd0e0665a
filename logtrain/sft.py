"""Fine-tunes a Llama on prepared chats, by LoRA or all parameters.

    logtrain sft RECIPE.toml --model DIR --data DIR
    launch/run.sh sft launch/recipes/sft_lora_4xh100.toml     on every GPU

The data are conversations that logtrain.prepare has put through the chat template; only the assistant's turns are
targets. Everything else is a run as of logtrain.cpt, with the same exit statuses. With adapters (lora.rank > 0) the run
writes adapter/ in PEFT's format beside export/, in which the adapters are merged.
"""

from dataclasses import dataclass, field

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.core.stop import StopSignal, stoppable
from logtrain.model.config import LoraConfig
from logtrain.training.config import RunConfig
from logtrain.training.optim_config import LR_OF_ADAPTERS, OptimConfig


@dataclass(frozen=True, kw_only=True)
class SftConfig(RunConfig):
    """Fine-tune a Llama model on prepared conversations, by LoRA or all parameters, and export it."""

    trains_on = "chats"
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=16, dropout=0.05))
    """Adapters, here of rank 16 by default."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=LR_OF_ADAPTERS))
    """The learning rate is by default one for adapters; all parameters (lora.rank = 0) take about 1e-5."""


def main(argv: list[str]) -> int:
    """Fine-tune as the flags say; -> the exit status."""
    config = load(SftConfig, argv, writes="--rehearse" not in argv)

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
