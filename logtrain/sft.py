"""Supervised fine-tuning on chat data: `torchrun --nproc_per_node 4 -m logtrain.sft
launch/recipes/sft_lora_4xh100.toml`, or without torchrun on one device.

The data are conversations that logtrain.prepare has put through the chat template; only the assistant's turns are
targets. Everything else is a run as in logtrain.cpt, with the same exit statuses. With adapters (lora.rank > 0) it
leaves adapter/ in PEFT's format beside export/, in which they are merged.
"""

from dataclasses import dataclass, field

from logtrain.core.config import load, run
from logtrain.model.lora import LoraConfig
from logtrain.training.job import Job, JobConfig


@dataclass(frozen=True, kw_only=True)
class SftConfig(JobConfig):
    """Fine-tune a Llama model on prepared conversations, by LoRA or all parameters, and export it."""

    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=16, dropout=0.05))


def main(argv: list[str]) -> int:
    return Job(load(SftConfig, argv)).run()


if __name__ == "__main__":
    run(main)
